"""The grammar of quantities and formulae, as tables."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasitile.reading.formulae import find_formulae, is_formula
from quasitile.reading.quantities import find_quantities


@pytest.mark.parametrize(
    ("text", "expected", "kind"),
    [
        ("an efficiency of 12.8-13.0 % was", "12.8-13.0%", "share"),
        ("heated to 200C.", "200 °C", "temperature"),
        ("heated to 200 °C.", "200 °C", "temperature"),
        ("heated to 200 ° C", "200 °C", "temperature"),
        ("1.5 W m^-1 K^-1,", "1.5 W m^-1 K^-1", "power*"),
        ("1.5 W m-1 K-1", "1.5 W m^-1 K^-1", "power*"),
        ("5 W/(m K)", "5 W/(m K)", "power*"),
        ("about 7 m^2 g^-1) was", "7 m^2 g^-1", "length*"),
        ("2 mA cm^-2", "2 mA cm^-2", "current*"),
        ("10^-6 S cm^-1", "10^-6 S cm^-1", "conductance*"),
        ("3.2 × 10^-4 S/cm", "3.2 × 10^-4 S/cm", "conductance*"),
        ("5 mol% of", "5 mol%", "share"),
        ("9.74 × 10-4 S cm-1 at", "9.74 × 10^-4 S cm^-1", "conductance*"),
        ("3 wt.% of", "3 wt.%", "share"),
        ("a gap of 1.55 eV", "1.55 eV", "energy"),
        ("for 2 h at", "2 h", "time"),
        ("at 5 GPa", "5 GPa", "pressure"),
        ("200 °C-300 °C", "200-300 °C", "temperature"),
        ("200 to 300 K", "200-300 K", "temperature"),
        ("10 °C/min", "10 °C/min", "rate"),
        ("1.2 ± 0.1 nm", "1.2 ± 0.1 nm", "length"),
        ("1,200 mAh g^-1", "1,200 mAh g^-1", "charge*"),
        ("at -40 °C", "-40 °C", "temperature"),
        ("40 cm2 C- 1", "40 cm^2 C^-1", "length*"),
    ],
)
def test_one_quantity(text, expected, kind):
    found = find_quantities(text)
    assert [(quantity.text, quantity.kind) for quantity in found] == [(expected, kind)]


@pytest.mark.parametrize(
    "text",
    [
        "at 0.5C rate",
        "in 2014 the",
        "Figure 3 A",
        "Fig. 2 m",
        "v1.2nm",
        "5 samples",
        "La2O3",
        "",
    ],
)
def test_no_quantity(text):
    assert find_quantities(text) == []


@pytest.mark.parametrize(
    "formula",
    [
        "La2O3",
        "CO2",
        "NiO",
        "CH3NH3PbI3",
        "La0.6Sr0.4CoO3-δ",
        "Ba1-xSrxTiO3",
        "PbI2",
        "H2O",
        "N2",
        "SiC",
        "KOH",
        "Ca(OH)2",
        "InP",
        "Si3N4",
        "LiFePO4",
        "TiO2-x",
        "O2",
        "GaAs",
    ],
)
def test_formulae(formula):
    assert is_formula(formula)
    assert find_formulae(f"The {formula}, as shown.") == ((formula, 4, 4 + len(formula)),)


@pytest.mark.parametrize(
    "word",
    [
        "SOFC",
        "In",
        "As",
        "He",
        "Co",
        "XRD",
        "DSC",
        "Hot",
        "PEDOT",
        "Nafion",
        "I",
        "Al-Mg-Si",
        "No",
        "Ca(OH",
        "Ca)OH(",
        "K",
        "12",
    ],
)
def test_words_that_are_not_formulae(word):
    assert not is_formula(word)


@settings(deadline=None)
@given(st.text(alphabet="0123456789.-–^±× °CKeVhmnM%/()a", max_size=40))
def test_quantities_lie_where_they_say(text):
    for quantity in find_quantities(text):
        assert 0 <= quantity.start < quantity.stop <= len(text)
        assert text[quantity.start] in "+-0123456789"
