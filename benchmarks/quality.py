"""Damage at equal stored bytes, without any training: every way of coding at every size, over calibration seeds.

    python benchmarks/quality.py [MODEL] --text TRAIN.jsonl --general TEST.jsonl [--bits 4 3 2] [--only best paper]

`--only` takes names of `recipes/`, of presets (docs/presets.md; `presets` stands for all of them) and of the variations
below. `--bits` are stored bits an original weight, everything in the files counted. `--gptq` adds our own GPTQ at these
fixed rates (groups of 64, every matrix, the embedding too) and `best` at the bytes it takes. Writes a JSON line a measurement
to `--out` and repeats none that is there.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from measure import Bench, Results, common_arguments, markdown, recipe_of, score_table  # beside this file
from rich.console import Console

from quasitile.baselines import gptq
from quasitile.codec.axes import AXES
from quasitile.codec.spectrum import TRANSFORMS
from quasitile.codec.tiling import TILINGS
from quasitile.compress.calibrate import calibrate
from quasitile.compress.order import ORDERS
from quasitile.errors import InputError
from quasitile.recipe import presets


def factors(tiling: str, transform: str = "dct") -> dict[str, Any]:
    """The paper's form: rank blocks with truncated spectra and no residual."""
    return {"residual": "none", "tiling": {"name": tiling}, "spectrum": {"transform": transform, "threshold": 0.55}}


VARIATIONS: dict[str, dict[str, Any]] = {
    **{f"factors, {tiling}": factors(tiling) for tiling in TILINGS},
    **{f"factors, penrose, {transform}": factors("penrose", transform) for transform in TRANSFORMS},
    "factors, whole matrix, identity": factors("whole", "identity"),
    **{f"factors, {tiling}, {order}": {**factors(tiling), "order": order} for tiling in TILINGS for order in ORDERS},
    **{f"residual, {tiling}": {"tiling": {"name": tiling}} for tiling in TILINGS},
    **{f"residual in {transform}": {"residual": transform} for transform in TRANSFORMS},
    "residual, 32 states": {"trellis": 32},
    "residual, no trellis": {"trellis": 1},
    "residual, rows alike": {"row_damping": 1.0},
    "residual + rank 4": {"max_rank": 4},
    **{f"order, {order}": {"order": order} for order in ORDERS},
    **{f"axes, {kind}": {"axes": {"kind": kind}} for kind in ("none", "stream", *AXES)},
    "axes, stream, order, energy": {"axes": {"kind": "stream"}, "order": "energy"},
    "axes, stream, no trellis, dead zone 0.6": {"axes": {"kind": "stream"}, "trellis": 1, "residual_threshold": 0.6},
    "paper, corrected": factors("penrose"),
    "residual, not corrected": {"calibration": {"propagate": "original"}},
    "residual, priced at the original": {"calibration": {"gradients": "original"}},
    "residual, no products": {"products": "no"},
    "factor first": {**factors("penrose"), "factorise": "factor first"},
}


def chosen(names: list[str]) -> dict[str, dict[str, Any]]:
    """Settings by name: of recipes, of presets, or of all variations that a pattern fits."""
    found: dict[str, dict[str, Any]] = {}
    for name in [each for wanted in names for each in (presets() if wanted == "presets" else [wanted])]:
        matching = [variation for variation in VARIATIONS if fnmatchcase(variation, name)]
        found |= {variation: VARIATIONS[variation] for variation in matching} or {name: recipe_of(name)}
    return found


def main() -> None:
    parser = common_arguments(__doc__)
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2, 1])
    parser.add_argument("--gptq", type=int, nargs="*", default=[])
    parser.add_argument("--only", nargs="+", default=["best", "paper", *VARIATIONS], help="names, or patterns as 'factors*'")
    args = parser.parse_args()
    screen, results = Console(), Results(args.out)
    variants = chosen(args.only)
    bench = Bench(args)

    def measure(variant: str, changes: dict[str, Any], bits: float, seed: int, num_bytes: int) -> None:
        key = {**bench.setting, "variant": variant, "bits": bits, "seed": seed}

        def compressed() -> dict[str, Any]:
            try:
                return bench.ours(changes, num_bytes, seed)
            except InputError as error:  # what a form of coding cannot reach at all
                return {"impossible": str(error)}

        line = results.once(key, compressed)
        screen.print(f"{variant}, {bits:g} bits, seed {seed}: {line.get('damage_nats', line.get('impossible'))}", style="dim")

    for seed in range(args.seeds):
        for bits in args.gptq:
            key = {**bench.setting, "variant": "our GPTQ", "bits": bits, "seed": seed}
            line = results.once(key, lambda bits=bits, seed=seed: own_gptq(bench, bits, seed))
            measure("best at its bytes", recipe_of("best"), bits, seed, line["stored_bytes"])
        for variant, changes in variants.items():
            for bits in args.bits:
                measure(variant, changes, bits, seed, int(bits * bench.num_parameters / 8))
    lines = [line for line in results.find(bench.setting) if "damage_nats" in line]
    for score in ("damage_nats", "divergence_nats"):
        print(markdown(*score_table(lines, score)), end="\n\n")


def own_gptq(bench: Bench, bits: int, seed: int) -> dict[str, Any]:
    """Every matrix by `baselines.gptq`."""
    moments = calibrate(bench.model, bench.windows(seed), 8, seed)
    results = {name: gptq(weight, moments[name].inputs, bits) for name, weight in bench.original.items()}
    in_matrices = sum(weight.numel() for weight in bench.original.values())
    num_bytes = sum(stored * bench.original[name].numel() / 8 for name, (_, stored) in results.items())
    return {
        "stored_bytes": round(num_bytes) + 2 * (bench.num_parameters - in_matrices),
        **bench.score_with({name: rounded for name, (rounded, _) in results.items()}),
    }


if __name__ == "__main__":
    main()
