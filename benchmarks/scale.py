"""Memory and time of compressing a model that lies on disk, on synthetic checkpoints of real shapes.

    python benchmarks/scale.py 1b [--layers N] [--vocabulary V] [--size 25%] [--windows 4] [--tokens 128] [--trellis 8]

CPU seconds are those of the process itself, so they stand on a machine that others use too, for one
worker. Makes a checkpoint of random bf16 weights, compresses it in a process of its own with the package's
general text, records its peak resident memory and the seconds of each part, appends a line to
`--out`, and deletes both checkpoint and result. `--layers` makes fewer layers than the model has;
what is printed for the whole model is then a projection, and says so. `--layer-steps` also records the original and
aligns what was compressed with the recording, layer by layer alone, each in a process of its own (`--trellis 1` suits that).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from quasitile.checkpoint.shards import INDEX
from quasitile.checkpoint.streams import save_tensors
from quasitile.folders import read_json, read_jsonl, write_json
from quasitile.progress import human_bytes, table
from quasitile.recipe import resolve
from quasitile.runtime import load_tokenizer

QUASITILE = (sys.executable, "-m", "quasitile.cli")
LIMIT_BYTES = 40 * 10**9  # of a checkpoint on this disk
SHAPES: dict[str, dict[str, Any]] = {
    name: dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), sizes, strict=True))
    for name, sizes in {
        "0.3b": (1024, 4096, 16, 16),
        "1b": (2048, 8192, 16, 32),
        "3b": (3072, 8192, 28, 24),
        "8b": (4096, 14336, 32, 32),
        "70b": (8192, 28672, 80, 64),
        "405b": (16384, 53248, 126, 128),
    }.items()
}
VOCABULARY = {"0.3b": 32000}  # 128256 of all others
TIED = ("1b", "3b")


def config_of(name: str, layers: int | None, vocabulary: int | None) -> LlamaConfig:
    """The configuration of these shapes."""
    shape = {**SHAPES[name], "vocab_size": VOCABULARY.get(name, 128256), "tie_word_embeddings": name in TIED}
    shape |= ({"num_hidden_layers": layers} if layers else {}) | ({"vocab_size": vocabulary} if vocabulary else {})
    return LlamaConfig(
        **shape, num_key_value_heads=8, head_dim=shape["hidden_size"] // shape["num_attention_heads"], dtype="bfloat16",
        bos_token_id=0, eos_token_id=0, max_position_embeddings=8192,
    )  # fmt: skip


def num_parameters(config: LlamaConfig) -> int:
    """Of the model."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())


def make_checkpoint(config: LlamaConfig, folder: Path, seed: int) -> None:
    """Random weights, a file a layer, never more than one tensor in memory."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    weight_map = {}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        values = torch.empty(parameter.shape, dtype=torch.bfloat16)
        for part in values.view(-1).split(1 << 24):
            part.copy_(torch.randn(len(part), generator=generator) * 0.02 if parameter.ndim > 1 else torch.ones(len(part)))
        file = f"part-{number:05d}.safetensors"
        save_tensors(folder / file, {name: values})
        weight_map[name] = file
    write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    load_tokenizer(resolve("embedded:base")).save_pretrained(folder)


class Measured(NamedTuple):
    """What a command took, in its own process: bytes, and seconds by the clock and of computing."""

    peak_bytes: int
    peak_anonymous_bytes: int  # without the pages of files, which the system drops where memory is short
    seconds: float
    cpu_seconds: float


def measured(command: list[str]) -> Measured:
    """Run a command; its anonymous memory is looked at ten times a second."""
    started, anonymous = time.monotonic(), 0
    process = subprocess.Popen(command, env={**os.environ, "QUASITILE_QUIET": "1"}, stdout=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    while True:
        found, code, usage = os.wait4(process.pid, os.WNOHANG)
        if found:
            break
        sizes = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        anonymous = max(anonymous, 1024 * int(sizes.get("RssAnon", "0 kB").split()[0]))
        time.sleep(0.1)
    if code:
        raise SystemExit(f"{' '.join(command)} failed")
    return Measured(usage.ru_maxrss * 1024, anonymous, time.monotonic() - started, usage.ru_utime + usage.ru_stime)


def settings(changes: list[str]) -> list[str]:
    """As options of a command."""
    return [part for change in changes for part in ("--set", change)]


def aligned(model: str, compressed: Path, args: argparse.Namespace, texts: tuple[str, str]) -> dict[str, Any]:
    """Peak memory and seconds of recording the original and of aligning with the recording, layer by layer alone."""
    recording, out, tokens = args.folder / "recording", args.folder / "aligned", f"num_tokens={args.tokens}"
    record = settings([f"num_windows={args.windows}", tokens, "stream=yes"])
    held_out, batch = max(1, args.windows // 4), max(1, args.windows // 4)
    align = [f"layer_steps={args.layer_steps}", "num_steps=0", f"batch_size={batch}", f"held_out_windows={held_out}", tokens]
    commands = {
        "record": ["record", model, str(recording), *texts, *record],
        "align": ["align", str(compressed), str(out), "--teacher", str(recording), *texts, *settings(align)],
    }
    found: dict[str, Any] = {"layer_steps": args.layer_steps}
    for name, command in commands.items():
        took = measured([*QUASITILE, *command])
        found |= {f"{name}_peak_memory_bytes": took.peak_bytes, f"{name}_peak_anonymous_bytes": took.peak_anonymous_bytes}
        found[f"{name}_cpu_seconds"] = took.cpu_seconds
    summary = read_json(out / "summary.json")
    found |= {key: summary[key] for key in ("damage_before_nats", "damage_after_nats")}
    print(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--size", default="25%")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--moment-mib", type=int, default=16, help="of the largest block of a second moment")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trellis", type=int, default=8)
    parser.add_argument("--propagate", default="original", help="corrected: code layers behind coded ones")
    parser.add_argument("--layer-steps", type=int, default=0, help="of alignment a layer; 0 for none")
    parser.add_argument("--folder", type=Path, default=Path("scale"), help="for checkpoint and result; deleted")
    parser.add_argument("--out", type=Path, default=Path("scale.jsonl"))
    args = parser.parse_args()
    config, whole = config_of(args.shape, args.layers, args.vocabulary), config_of(args.shape, None, None)
    count, count_whole = num_parameters(config), num_parameters(whole)
    if 2 * count > LIMIT_BYTES:
        raise SystemExit(f"{human_bytes(2 * count)} of weights are too many; give fewer --layers")
    if args.folder.exists():
        raise SystemExit(f"{args.folder} exists; choose another --folder")
    (args.folder / "model").mkdir(parents=True)
    try:
        make_checkpoint(config, args.folder / "model", 0)
        text, out = resolve("embedded:general.jsonl"), args.folder / "compressed"
        calibration = {"num_windows": args.windows, "num_tokens": args.tokens, "batch_size": args.batch, "stream": "yes"}
        calibration |= {"moment_bytes": args.moment_mib << 20, "propagate": args.propagate}
        changes = [f"calibration.{key}={value}" for key, value in calibration.items()] + [
            f"workers={args.workers}",
            f"trellis={args.trellis}",
        ]
        model, texts = str(args.folder / "model"), ("--text", str(text))
        command = [*QUASITILE, "compress", model, str(out), *texts, "--size", args.size, *settings(changes)]
        peak, _, seconds, computed = measured(command)
        alignment = aligned(model, out, args, texts) if args.layer_steps else {}
        parts = {row["part"]: row for row in read_jsonl(out / "metrics.jsonl")}
        summary = read_json(out / "summary.json")
    finally:
        shutil.rmtree(args.folder)
    line = {
        "shape": args.shape, "num_layers": config.num_hidden_layers, "vocabulary": config.vocab_size, "num_parameters": count,
        "peak_memory_bytes": peak, "seconds": seconds, "workers": args.workers, "tokens": args.windows * args.tokens,
        "moment_mib": args.moment_mib, "trellis": args.trellis, "propagate": args.propagate,
        "target_bytes": summary["target_bytes"], "stored_bytes": summary["stored_bytes"],
        "cpu_seconds": computed, "cpu_nanoseconds_per_parameter": 1e9 * computed / count, "parts": parts,
        "load": os.getloadavg()[0], **alignment,
    }  # fmt: skip
    with args.out.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
    screen = Console()
    rows = [
        (
            part,
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{1e9 * row['cpu_seconds'] / count:.1f}",
            human_bytes(row["peak_memory_bytes"]),
        )
        for part, row in parts.items()
    ]
    screen.print(
        table(
            f"{args.shape}: {count:,} parameters", ("part", "seconds", "CPU seconds", "CPU ns a parameter", "peak so far"), rows
        )
    )
    each = 1e9 * computed / count
    screen.print(f"all: {seconds:.0f} s, {computed:.0f} CPU s, {each:.0f} CPU ns a parameter, peak {human_bytes(peak)}")
    if count < count_whole:
        hours = computed / count * count_whole / 3600
        screen.print(f"projected for all {count_whole:,} parameters (not run): {hours:.1f} CPU h at the same peak")


if __name__ == "__main__":
    main()
