"""Words of materials science that the rules look for."""

from __future__ import annotations

# Property, and the kinds of quantity its value may have (none given: any).
PROPERTIES = {
    "band gap": "energy", "bandgap": "energy", "band gap energy": "energy", "activation energy": "energy",
    "binding energy": "energy", "formation energy": "energy", "adsorption energy": "energy", "work function": "energy",
    "migration barrier": "energy", "energy density": "energy power", "power density": "power",
    "specific energy": "energy power", "ionic conductivity": "conductance", "electrical conductivity": "conductance",
    "electronic conductivity": "conductance", "proton conductivity": "conductance", "conductivity": "conductance power",
    "thermal conductivity": "power", "lattice thermal conductivity": "power", "resistivity": "resistance",
    "resistance": "resistance", "seebeck coefficient": "voltage", "power factor": "power", "figure of merit": "",
    "specific capacity": "charge", "discharge capacity": "charge", "reversible capacity": "charge",
    "charge capacity": "charge", "initial discharge capacity": "charge", "theoretical capacity": "charge",
    "capacity": "charge share", "capacity retention": "share", "coulombic efficiency": "share",
    "faradaic efficiency": "share", "efficiency": "share", "power conversion efficiency": "share", "fill factor": "share",
    "open-circuit voltage": "voltage", "open circuit voltage": "voltage", "cell voltage": "voltage", "voltage": "voltage",
    "overpotential": "voltage", "tafel slope": "voltage", "current density": "current",
    "short-circuit current density": "current", "limiting current density": "current", "young's modulus": "pressure",
    "elastic modulus": "pressure", "shear modulus": "pressure", "bulk modulus": "pressure", "modulus": "pressure",
    "tensile strength": "pressure", "yield strength": "pressure", "ultimate tensile strength": "pressure",
    "compressive strength": "pressure", "flexural strength": "pressure", "bending strength": "pressure",
    "strength": "pressure", "yield stress": "pressure", "hardness": "pressure hardness",
    "microhardness": "pressure hardness", "fracture toughness": "", "impact energy": "energy", "elongation": "share",
    "strain": "share", "porosity": "share", "relative density": "share", "density": "mass", "surface area": "length",
    "specific surface area": "length", "bet surface area": "length", "pore volume": "length volume", "pore size": "length",
    "pore diameter": "length", "grain size": "length", "particle size": "length", "crystallite size": "length",
    "average diameter": "length", "diameter": "length", "thickness": "length", "layer thickness": "length",
    "film thickness": "length", "lattice parameter": "length", "lattice constant": "length", "bond length": "length",
    "interlayer spacing": "length", "wavelength": "length", "diffusion length": "length", "diffusion coefficient": "length",
    "surface roughness": "length", "roughness": "length", "length": "length", "width": "length", "height": "length",
    "melting point": "temperature", "melting temperature": "temperature", "boiling point": "temperature",
    "glass transition temperature": "temperature", "curie temperature": "temperature",
    "transition temperature": "temperature", "critical temperature": "temperature",
    "phase transition temperature": "temperature", "decomposition temperature": "temperature",
    "operating temperature": "temperature", "sintering temperature": "temperature", "temperature": "temperature",
    "heating rate": "rate", "cooling rate": "rate", "scan rate": "voltage", "carrier concentration": "length",
    "mobility": "length", "electron mobility": "length", "hole mobility": "length", "carrier lifetime": "time",
    "lifetime": "time", "half-life": "time", "dielectric constant": "", "thermal expansion coefficient": "temperature",
    "coefficient of thermal expansion": "temperature", "mass loading": "mass", "loading": "mass share", "purity": "share",
    "content": "share", "concentration": "amount share mass", "magnetic moment": "", "magnetisation": "magnetisation",
    "saturation magnetization": "magnetisation", "coercivity": "field", "gas uptake": "", "uptake": "amount mass share",
    "adsorption capacity": "amount mass", "tensile elongation": "share", "mass": "mass",
}  # fmt: skip

# Nouns that end the name of something measured, and the kinds of quantity they may have (none given: any).
MEASURES = {
    "activity": "", "amplitude": "", "angle": "angle", "aperture": "length", "area": "length", "barrier": "energy length",
    "bias": "voltage", "capacitance": "capacitance", "charge": "charge", "coefficient": "", "concentration": "",
    "constant": "", "depth": "length", "diameter": "length", "dimension": "length", "dose": "", "duration": "time",
    "distance": "length", "drop": "", "elongation": "share", "energy": "energy power", "enthalpy": "energy", "entropy": "",
    "error": "", "exponent": "", "factor": "", "field": "field voltage", "fluence": "energy", "flux": "",
    "force": "force mass", "fraction": "share", "frequency": "frequency", "gap": "energy length voltage",
    "height": "length", "humidity": "share", "impedance": "resistance", "intensity": "", "lifetime": "time", "limit": "",
    "load": "", "loss": "", "mass": "mass", "molarity": "amount", "offset": "", "onset": "",
    "overshoot": "", "period": "time", "permittivity": "", "polarization": "", "potential": "voltage energy",
    "power": "power", "precision": "", "pressure": "pressure", "radius": "length", "ratio": "", "rate": "",
    "reactivity": "", "recovery": "share", "resolution": "length angle energy", "retention": "share", "saving": "share",
    "selectivity": "share", "sensitivity": "", "shift": "", "shrinkage": "share", "slope": "", "solubility": "",
    "spacing": "length", "speed": "frequency length", "stress": "pressure", "stability": "", "stiffness": "", "tension": "",
    "time": "time", "tolerance": "", "toughness": "", "transmittance": "share", "uncertainty": "", "utilization": "share",
    "vacuum": "pressure", "velocity": "length", "viscosity": "", "volume": "length volume", "weight": "mass", "yield": "share",
    "size": "length", "rating": "", "step": "", "radiation": "", "flow": "volume", "accuracy": "", "reflectivity": "share",
    "transmission": "share", "absorption": "", "threshold": "", "current": "current",
    "absorbance": "", "acceleration": "length voltage", "amount": "", "anisotropy": "", "attenuation": "",
    "back-pressure": "pressure", "backpressure": "pressure", "bandwidth": "", "broadening": "",
    "conductance": "conductance", "consumption": "", "conversion": "share", "crystallinity": "share",
    "curvature": "length", "cut-off": "", "cutoff": "", "decrease": "", "deflection": "length",
    "degree": "share angle", "delay": "time", "deviation": "", "difference": "", "dispersion": "",
    "displacement": "length", "dissipation": "", "durability": "time count", "dwell": "time", "emissivity": "share",
    "expansion": "", "exposure": "", "extension": "length share", "feed": "length", "footprint": "length",
    "fwhm": "", "gain": "", "gradient": "", "half-width": "", "hysteresis": "", "illuminance": "",
    "improvement": "share", "inclination": "angle", "increase": "", "increment": "", "inductance": "",
    "interval": "", "irradiance": "power", "irradiation": "power energy", "level": "", "life": "time count",
    "luminance": "", "magnetization": "", "magnitude": "", "mismatch": "share", "misorientation": "angle",
    "moment": "", "momentum": "", "opening": "length", "orientation": "angle", "overlap": "", "percentage": "share",
    "periodicity": "length", "photocurrent": "current", "photovoltage": "voltage", "pitch": "length",
    "polarisation": "", "portion": "share", "position": "", "probability": "share", "production": "",
    "proportion": "share", "pulse": "time energy", "quantity": "", "range": "", "reduction": "share",
    "remanence": "", "rise": "", "separation": "length", "share": "share", "slit": "length angle",
    "span": "length time", "splitting": "energy voltage frequency", "sweep": "", "swelling": "share",
    "throughput": "", "tilt": "angle", "torque": "", "transparency": "share", "turnover": "", "wavenumber": "length",
    "window": "voltage energy length", "workfunction": "energy",
}  # fmt: skip

# Of these a number without a unit can be the value.
NUMBERS_ALONE = frozenset([
    "ratio", "factor", "coefficient", "exponent", "index", "constant", "p-value", "permittivity", "emissivity", "mse",
    "error", "merit", "probability", "deviation", "gain", "anisotropy", "porosity",
])  # fmt: skip
# Abbreviations that name something measured, and their kinds of quantity.
SYMBOLS = {
    "RH": "share",
    "PCE": "share",
    "FF": "share",
    "OCV": "voltage",
    "Voc": "voltage",
    "VOC": "voltage",
    "Jsc": "current",
    "JSC": "current",
    "ECSA": "length",
    "HFR": "resistance",
    "RMS": "length",
    "FWHM": "",
    "ASR": "resistance",
    "EQE": "share",
    "FE": "share",
    "CE": "share",
    "UTS": "pressure",
    "YS": "pressure",
    "MSE": "",
    "RMSE": "",
    "Tg": "temperature",
    "Tm": "temperature",
    "Tc": "temperature",
}

EPONYMS = frozenset([
    "Seebeck", "Curie", "Tafel", "Young's", "Coulombic", "Faradaic", "Vickers", "Hall", "Fermi", "Stokes", "Bragg",
    "Raman", "Poisson's", "Debye", "Schottky", "Brinell", "Rockwell", "Knoop", "Weibull", "Larmor", "Warburg",
    "Arrhenius", "Bohr", "Planck", "Boltzmann", "Reynolds", "Prandtl", "Nusselt", "Avrami", "Burgers", "Neel",
    "Martens",
])  # fmt: skip

STEPS = [
    "annealed", "calcined", "sintered", "heated", "dried", "quenched", "stirred", "cured", "aged", "milled", "ball-milled",
    "pressed", "hot-pressed", "held", "kept", "cooled", "tempered", "rolled", "hot-rolled", "cold-rolled", "grown",
    "deposited", "reduced", "oxidized", "oxidised", "treated", "heat-treated", "soaked", "sonicated", "ultrasonicated",
    "refluxed", "crystallized", "crystallised", "pyrolyzed", "pyrolysed", "carbonized", "carbonised", "autoclaved",
    "maintained", "degassed", "melted", "remelted", "homogenized", "homogenised", "austenitized", "austenitised",
    "solution-treated", "nitrided", "stored", "immersed", "irradiated", "centrifuged", "baked", "synthesized",
    "synthesised", "prepared", "evaporated", "sputtered", "fired", "compacted", "pelletized", "evacuated", "activated",
    "preheated", "mixed", "incubated", "ground", "isothermally", "reacted", "cycled", "fabricated", "forged", "extruded",
    "rapidly-cooled", "hydrothermally", "vacuum-dried", "freeze-dried",
]  # fmt: skip

ATMOSPHERES = (
    r"air|argon|Ar|nitrogen|N2|oxygen|O2|hydrogen|H2|vacuum|helium|He|CO2|carbon dioxide|ammonia|NH3|forming gas|inert gas|"
    r"inert|reducing|oxidizing|Ar/H2|H2/Ar|H2/N2|N2/H2"
)
