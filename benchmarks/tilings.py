"""The paper's question: do aperiodic tiles and frequencies help, at equal stored bytes and without any training?

    python benchmarks/tilings.py [MODEL] --text TRAIN.jsonl --general TEST.jsonl [--bits 4 2] [--seeds 3] [--only "factors*"]

Every layout for rank blocks alone (the paper's form) and for the residual, every transform of the factors on a Penrose
tiling, and every transform of a residual's tiles. Writes a JSON line a measurement to `--out` and repeats none that is there.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from measure import Bench, Results, common_arguments, damage_table, markdown  # beside this file
from rich.console import Console

from quasitile.codec.spectrum import TRANSFORMS
from quasitile.codec.tiling import TILINGS
from quasitile.errors import InputError

FACTORS: dict[str, Any] = {"residual": "none"}
VARIATIONS: dict[str, dict[str, Any]] = {
    **{f"factors, {name}, dct": FACTORS | {"tiling": {"name": name}} for name in TILINGS},
    **{
        f"factors, penrose, {name}": FACTORS | {"tiling": {"name": "penrose"}, "spectrum": {"transform": name}}
        for name in TRANSFORMS
    },
    **{f"residual, {name}": {"tiling": {"name": name}} for name in TILINGS},
    **{f"residual in {name}, fibonacci": {"residual": name} for name in TRANSFORMS if name != "identity"},
}


def main() -> None:
    parser = common_arguments(__doc__)
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 2])
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names")
    args = parser.parse_args()
    screen, results, bench = Console(), Results(args.out), Bench(args)
    names = [name for name in VARIATIONS if any(fnmatchcase(name, pattern) for pattern in args.only)]
    for seed, bits, name in product(range(args.seeds), args.bits, names):
        key = {**bench.setting, "variant": name, "bits": bits, "seed": seed}
        line = results.once(key, lambda: measured(bench, name, bits, seed))  # noqa: B023
        screen.print(f"{name}, {bits:g} bits, seed {seed}: {line.get('damage_nats', line.get('refused'))}", style="dim")
    print(markdown(*damage_table(line for line in results.find(bench.setting) if "damage_nats" in line)))


def measured(bench: Bench, name: str, bits: float, seed: int) -> dict[str, Any]:
    """A variation at a size, or why it cannot meet it. A seed also shifts the tiling."""
    tiling = VARIATIONS[name].get("tiling", {"name": "fibonacci"}) | {"seed": seed}
    try:
        return bench.ours(VARIATIONS[name] | {"tiling": tiling}, int(bits * bench.num_parameters / 8), seed)
    except InputError as error:
        return {"refused": str(error)}


if __name__ == "__main__":
    main()
