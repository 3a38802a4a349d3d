"""Load time, speed and memory of a stored model in every execution, beside dense bf16 and other programs' formats.

The matrices have the shapes of Llama 3.2 1B. `--layers` takes fewer of its 16 layers, and of its
128,256 tokens in proportion, so that embedding and layers keep their shares. Weights are random: one
folder has a residual of about 3 bits a weight on a trellis of 8 states, one has factors with a quarter of
the weights' numbers in Fibonacci tiles. Every variant is measured in a process of its own, one after
another, round by round, after one that only fills numba's cache of compiled functions.

Times are CPU seconds, which other work on the machine disturbs less than the clock, or with `--clock`
seconds of the clock, for idle machines. `--peers` is a Python with torchao and hqq, beside what this one has.
"Load again" is a second load in the same process, without what the first one imports and prepares once.
`--turns 40 --only "dense bf16" "3 bits dense"` compares speeds closely: all in one process, turn by turn.
With `lazy`, "beyond" is what tensors take against stored bytes and the cache's limit together.

    OMP_NUM_THREADS=1 python benchmarks/runtime.py --layers 1 --out runs/runtime --peers peers/bin/python
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

LAYERS, VOCABULARY = 16, 128256
BITS_SPREAD = 1.9  # of normal codes, whose entropy is then about 3 bits
STATES = 8
SHARE = 0.25
SHORT = 256
PREFILL, DECODED, REPEATS = 128, 16, 3
VARIANTS = (
    "dense bf16", "3 bits dense", "3 bits factored", "3 bits lazy 0%", "3 bits lazy 10%", "3 bits lazy 25%",
    "3 bits lazy 50%", "3 bits lazy 100%", "25% dense", "25% factored", "torchao int8", "hqq 4 bits",
)  # fmt: skip


def config(layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY * layers // LAYERS, hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, max_position_embeddings=8192, rope_theta=500000.0,
        tie_word_embeddings=True, dtype="bfloat16", bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def scales(shape: tuple[int, int], step: float) -> dict[str, torch.Tensor]:
    """Row and column scales that differ from one another, and give weights of the size of trained ones."""
    generator = torch.Generator().manual_seed(0)
    level = 128 + round(4 * math.log2(step / 0.02) / 2)
    return {
        key: torch.randint(level - 3, level + 4, (size,), generator=generator).to(torch.uint8)
        for key, size in zip(("row_scales", "column_scales"), shape, strict=True)
    }


def residual_matrix(shape: tuple[int, int], seed: int) -> Any:
    """Normal whole numbers of about 3 bits, as points of a trellis."""
    from quasitile.codec.block import Block, CodedMatrix
    from quasitile.codec.machine import machine, points_of
    from quasitile.codec.tiling import TILINGS

    tiling, following = TILINGS["fibonacci"](*shape, 64, 0), machine(STATES).following
    codes = np.rint(np.random.default_rng(seed).standard_normal(shape, np.float32) * BITS_SPREAD).astype(np.int32)
    blocks = []
    for tile in tiling.tiles:
        rows, columns = tile.shape
        inner = codes[tile.rows, tile.columns]
        quantisers, state = np.empty(inner.shape, np.uint8), np.zeros(rows, np.int64)
        for j in range(columns - 1, -1, -1):
            quantisers[:, j] = state & 1
            state = following[state, inner[:, j] & 1]
        points = torch.from_numpy(points_of(inner, quantisers, STATES)).float()
        none = torch.zeros(rows, 0), torch.zeros(columns, 0), torch.zeros(0)
        blocks.append(Block(*none, residual=points, residual_step=0.5))
    return CodedMatrix(tiling, blocks, "dct", **scales(shape, BITS_SPREAD), num_states=STATES)


def factor_matrix(shape: tuple[int, int], seed: int) -> Any:
    """Factors with a quarter of the numbers of the weight."""
    from quasitile.codec.block import Block, CodedMatrix
    from quasitile.codec.tiling import TILINGS

    tiling, rng = TILINGS["fibonacci"](*shape, SHORT, 0), np.random.default_rng(seed)
    blocks = []
    for tile in tiling.tiles:
        rows, columns = tile.shape
        rank = max(1, round(SHARE * rows * columns / (rows + columns)))
        left, right = (torch.from_numpy(rng.standard_normal((n, rank), np.float32)).mul_(8).round_() for n in (rows, columns))
        blocks.append(Block(left, right, torch.full((rank,), 1 / 64 / math.sqrt(rank)).bfloat16().float()))
    return CodedMatrix(tiling, blocks, "dct", **scales(shape, 1.0))


def folders(work: Path, layers: int) -> dict[str, Path]:
    """The dense model and both stored ones, made where they are not there yet."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from quasitile.runtime import compressible_layers, convert, save_model

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="a", eos_token="b", pad_token="b")
    made = {name: work / f"{name.replace(' ', '-').replace('%', '')}-{layers}" for name in ("dense bf16", "3 bits", "25%")}
    for name, folder in made.items():
        if (folder / "config.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = LlamaForCausalLM._from_config(config(layers), dtype=torch.bfloat16).eval()
        if name == "dense bf16":
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            continue
        found, tied = compressible_layers(model)
        make = residual_matrix if name == "3 bits" else factor_matrix
        shapes = {layer: tuple(place.weight.shape) for layer, place in found.items()}
        matrices = {layer: make(shape, seed) for seed, (layer, shape) in enumerate(shapes.items())}
        save_model(convert(model, matrices, tied), tokenizer, folder)
        print(f"made {folder}", file=sys.stderr, flush=True)
    return made


def resident() -> int:
    """Bytes of this process in memory that are its own, not of a mapped file."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["RssAnon"].split()[0])


def loaded(variant: str, made: dict[str, Path]) -> Any:
    """The model of a variant."""
    dense = str(made["dense bf16"])
    if variant in ("dense bf16", "torchao int8", "hqq 4 bits"):
        model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16)
        # Mapped weights are read when they are first used, decoded ones are there: read these as well.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        if variant == "torchao int8":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(model, Int8WeightOnlyConfig())
        if variant == "hqq 4 bits":
            from hqq.core.quantize import BaseQuantizeConfig
            from hqq.models.hf.base import AutoHQQHFModel

            AutoHQQHFModel.quantize_model(
                model, quant_config=BaseQuantizeConfig(nbits=4, group_size=64), compute_dtype=torch.bfloat16, device="cpu"
            )
        return model
    import quasitile

    size, how, *cached = variant.replace("3 bits", "3_bits").split(" ")
    share = float(cached[0].rstrip("%")) / 100 if cached else 0.0
    whole = sum(file.stat().st_size for file in made["dense bf16"].glob("*.safetensors"))
    with quasitile.execution(how, cache_bytes=int(share * whole)):
        return AutoModelForCausalLM.from_pretrained(str(made[size.replace("_", " ")]), dtype=torch.bfloat16)


def tensor_bytes(model: Any) -> int:
    """Bytes of all tensors that a model holds; torchao's are made of several."""
    from quasitile.runtime import resident_bytes

    made = [p for p in model.parameters() if hasattr(p, "__tensor_flatten__")]
    if not made:
        return resident_bytes(model)
    plain = {id(p): p.nbytes for p in [*model.parameters(), *model.buffers()] if not hasattr(p, "__tensor_flatten__")}
    parts = {id(p): sum(getattr(p, name).nbytes for name in p.__tensor_flatten__()[0]) for p in made}
    return sum({**plain, **parts}.values())


@torch.inference_mode()
def measure(variant: str, made: dict[str, Path], repeats: int, clock: bool) -> dict[str, Any]:
    """One variant, in this process."""
    now = time.perf_counter if clock else time.process_time
    from quasitile.compress.text import cache_keyword

    transformers_logging.disable_progress_bar()
    torch.zeros(8, 8) @ torch.zeros(8, 8)
    gc.collect()
    before, started = resident(), now()
    model = loaded(variant, made)
    load = now() - started
    gc.collect()
    tokens = torch.arange(PREFILL)[None] % model.config.vocab_size
    prefill, decode, keyword = [], [], cache_keyword(model)
    steps = 2 if "lazy" in variant else DECODED
    for repeat in range(repeats + 1):
        started = now()
        out = model(tokens, use_cache=True, logits_to_keep=1)
        middle = now()
        for _ in range(steps):
            out = model(out.logits[:, -1:].argmax(-1), use_cache=True, **{keyword: out[keyword]})
        ended = now()
        if repeat:  # the first is for warming up
            prefill.append(PREFILL / (middle - started))
            decode.append(steps / (ended - middle))
    gc.collect()
    resident_now, held = resident() - before, tensor_bytes(model)
    del model, out
    gc.collect()
    started = now()
    loaded(variant, made)
    again = now() - started
    return {
        "variant": variant,
        "clock": clock,
        "load_seconds": load,
        "load_again_seconds": again,
        "resident_bytes": resident_now,
        "tensor_bytes": held,
        "prefill": prefill,
        "decode": decode,
    }


@torch.inference_mode()
def in_turns(variants: list[str], made: dict[str, Path], turns: int, clock: bool) -> str:
    """Speeds of variants that are all in this process and take turns: a table with their ratios to the first, turn by turn."""
    from quasitile.compress.text import cache_keyword

    now = time.perf_counter if clock else time.process_time
    models = {variant: loaded(variant, made) for variant in variants}
    speeds: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for turn in range(turns + 1):
        for variant, model in models.items():
            tokens, keyword = torch.arange(PREFILL)[None] % model.config.vocab_size, cache_keyword(model)
            started = now()
            out = model(tokens, use_cache=True, logits_to_keep=1)
            middle = now()
            for _ in range(DECODED):
                out = model(out.logits[:, -1:].argmax(-1), use_cache=True, **{keyword: out[keyword]})
            if turn:  # the first is for warming up
                speeds[variant].append((PREFILL / (middle - started), DECODED / (now() - middle)))
    lines = ["| variant | prefill | of the first's | decode | of the first's |", "| --- | --- | --- | --- | --- |"]
    for variant, found in speeds.items():
        cells = []
        for values, others in zip(zip(*found, strict=True), zip(*speeds[variants[0]], strict=True), strict=True):
            ratios = [value / other for value, other in zip(values, others, strict=True)]
            error = 2 * statistics.stdev(ratios) / math.sqrt(turns)
            cells += [f"{statistics.median(values):.1f}", f"{statistics.mean(ratios):.3f} ± {error:.3f}"]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    middle = statistics.median(values)
    digits = 2 if middle < 100 else 0
    return f"{middle:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(results: list[dict[str, Any]], made: dict[str, Path], second: str) -> str:
    """Medians and ranges over rounds and repeats, as Markdown."""
    times = f"load, {second}", f"load again, {second}", f"prefill, tokens/{second}", f"decode, tokens/{second}"
    heads = ("variant", "stored MB", "tensors MB", "beyond", "resident MB", *times)
    whole = sum(file.stat().st_size for file in made["dense bf16"].glob("*.safetensors")) / 1e6
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for variant in VARIANTS:
        mine = [result for result in results if result["variant"] == variant and "error" not in result]
        if not mine:
            failed = [result["error"] for result in results if result["variant"] == variant]
            lines += [f"| {variant} | {failed[0]} | | | | | | | |"] if failed else []
            continue
        folder = next((made[name] for name in made if variant.startswith(name)), None)
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6 if folder else float("nan")
        tensors = statistics.median(result["tensor_bytes"] for result in mine) / 1e6
        cached = float(variant.split()[-1].rstrip("%")) / 100 * whole if "lazy" in variant else 0.0
        cells = [
            f"{stored:.0f}" if folder else "",
            f"{tensors:.0f}",
            f"{tensors / (stored + cached) - 1:+.1%}" if "lazy" in variant else "",
            f"{statistics.median(result['resident_bytes'] for result in mine) / 1e6:.0f}",
            spread([result["load_seconds"] for result in mine]),
            spread([result["load_again_seconds"] for result in mine]),
            spread([value for result in mine for value in result["prefill"]]),
            spread([value for result in mine for value in result["decode"]]),
        ]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=Path("runs/runtime"))
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    parser.add_argument("--clock", action="store_true", help="seconds of the clock instead of CPU seconds")
    parser.add_argument(
        "--turns", type=int, default=0, help="variants of --only in one process, so many turns; no loading times"
    )
    parser.add_argument("--child")
    given = parser.parse_args()
    names = ("dense bf16", "3 bits", "25%")
    made = {name: given.out / f"{name.replace(' ', '-').replace('%', '')}-{given.layers}" for name in names}
    if given.child:
        print(json.dumps(measure(given.child, made, given.repeats, given.clock)))
        return
    made = folders(given.out, given.layers)
    if given.turns:
        print(in_turns(given.only, made, given.turns, given.clock))
        return
    results: list[dict[str, Any]] = []
    warm = [variant for variant in ("3 bits dense", "25% dense") if variant in given.only]
    for number, variants in enumerate([warm, *[given.only] * given.rounds]):
        for variant in variants:
            python = given.peers if variant in ("torchao int8", "hqq 4 bits") else sys.executable
            command = [python, __file__, "--child", variant, "--layers", str(given.layers), "--repeats", str(given.repeats)]
            done = subprocess.run(
                [*command, "--out", str(given.out), *["--clock"] * given.clock], capture_output=True, text=True, env=os.environ
            )
            try:
                results.append(json.loads(done.stdout.splitlines()[-1]))
            except (IndexError, json.JSONDecodeError):
                last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
                results.append({"variant": variant, "error": last[:160]})
            print(number, json.dumps(results[-1])[:300], file=sys.stderr, flush=True)
            if not number:
                results.clear()
            (given.out / "results.json").write_text(json.dumps(results, indent=1))
    print(table(results, made, "s" if given.clock else "CPU s"))


if __name__ == "__main__":
    main()
