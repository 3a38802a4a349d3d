"""Corrupted model folders: every one must be refused with a clear error or load as the same model.

Tiny models of several kinds (trellis, factors, sorted and stored axes, experts, structures, tied
heads) are damaged at random: flipped bits, cut and lengthened files, edited JSON, edited safetensors
headers, edited payloads, missing and exchanged files. Half of the damaged folders get new checksums,
so that what lies behind them is reached; such a folder may also load as another, consistent model.
Each is opened by `load_model` or by plain Transformers, in child processes with limits of memory and
time, dense or lazily, and computes once.

    python benchmarks/fuzz_models.py --count 10000 --seed 0 --out runs/fuzz.json
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from quasitile import InputError, load_model
from quasitile.checkpoint import seal
from quasitile.codec.coding import Coding
from quasitile.codec.matrix import encode_matrix
from quasitile.codec.structure import Structure
from quasitile.codec.tiling import TILINGS
from quasitile.runtime import compressible_layers, convert, save_model, tiled_matrices

VOCABULARY = 40
TOKENS = torch.arange(3, 15).view(2, 6)
CPU_SECONDS, WALL_SECONDS = 20, 600  # a folder
MORE_BYTES = 3 << 29  # address space beside what a child has when it starts
SMALL = {"num_hidden_layers": 1, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
LLAMA = SMALL | {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
JUNK: list[Any] = [
    None, True, -1, 0, 1, 2, 3, 255, 2**31, 2**40, 2**63, 2**64, -(2**63), 0.5, 1e308, -1e-300, float("nan"), "", "x", "../x",
    "a" * 300, [], {}, [0], [2**40, 2**40], {"a": 1}, [[[[]]]], "F64", "U8", "float16", "linear", "experts", "quasitile",
]  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(["<s>", "<pad>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 3))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>", pad_token="<pad>")


def coded(model: Any, coding: Coding, tiling: str, structure: str | None = None) -> Any:
    """Every matrix of a model coded in the same way, as if inputs were uncorrelated."""
    layers, tied = compressible_layers(model)
    matrices = {}
    for name, place in layers.items():
        weight = place.weight.detach().double()
        shape = Structure(structure, tuple(weight.shape), 4, 4) if structure else None
        stored = weight if shape is None else shape.project(weight)
        moment = torch.eye(stored.shape[1], dtype=torch.float64) + 0.1
        tiles = TILINGS[tiling](*stored.shape, 8, 0)
        matrix, _ = encode_matrix(stored, tiles, moment, torch.ones(len(stored)), 0.05, coding)
        matrix.structure = shape
        matrices[name] = matrix
    return convert(model, matrices, tied)


def originals(folder: Path) -> list[Path]:
    """Stored models of every kind."""
    torch.manual_seed(0)
    residual = Coding(residual="identity")
    llama = LlamaForCausalLM(LlamaConfig(**LLAMA, num_key_value_heads=1, tie_word_embeddings=True))
    mixtral = MixtralForCausalLM(MixtralConfig(**LLAMA, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2))
    small = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    made = {
        "trellis": coded(llama, Coding(residual="identity", num_states=8), "fibonacci"),
        "factors": coded(LlamaForCausalLM(LlamaConfig(**LLAMA)), Coding(max_rank=4), "penrose"),
        "sorted": coded(LlamaForCausalLM(LlamaConfig(**LLAMA)), Coding(residual="identity", axes="sorted"), "grid"),
        "stored-axes": coded(LlamaForCausalLM(LlamaConfig(**LLAMA)), Coding(residual="dct", axes="klt", max_rank=2), "grid"),
        "experts": coded(mixtral, residual, "whole"),
        "circulant": coded(GPT2LMHeadModel(small), residual, "grid", "circulant"),
        "hashed": coded(GPT2LMHeadModel(small), residual, "grid", "hashed"),
    }
    for name, model in made.items():
        (folder / name).mkdir(parents=True)
        save_model(model.eval(), tokenizer(), folder / name)
    return [folder / name for name in made]


def fingerprint(model: Any) -> str:
    """Of everything that a loaded model holds and of what it computes."""
    with torch.no_grad():
        tensors = [*model.state_dict().values(), *(m.weight() for m in tiled_matrices(model).values()), model(TOKENS).logits]
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def places(tree: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Every container and key of a JSON tree."""
    found = [] if found is None else found
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        found.append((tree, key))
        if isinstance(value, dict | list):
            places(value, found)
    return found


def edit_tree(tree: Any, rng: random.Random) -> None:
    """One random change of a JSON tree."""
    everywhere = places(tree)
    if not everywhere:
        return
    values = [container[key] for container, key in everywhere]
    container, key = rng.choice(everywhere)
    kind, value = rng.randrange(5), container[key]
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(value, int | float) and not isinstance(value, bool):
        container[key] = rng.choice([value + 1, value - 1, value * 1000, -value, value << 32 if isinstance(value, int) else 0])
    elif kind == 2 and isinstance(container, dict):
        container[key + rng.choice(["x", ".", "_"])] = container.pop(key)
    elif kind == 3:
        container[key] = copy.deepcopy(rng.choice(values))
    else:
        container[key] = rng.choice(JUNK)


def weight_file(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors")


def any_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))


def flip(folder: Path, rng: random.Random) -> None:
    path = any_file(folder, rng) if rng.random() < 0.6 else weight_file(folder)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def resize(folder: Path, rng: random.Random) -> None:
    path = any_file(folder, rng) if rng.random() < 0.6 else weight_file(folder)
    content = path.read_bytes()
    cut = rng.randrange(len(content) + 1)
    path.write_bytes(
        rng.choice([content[:cut], content[cut:], content + rng.randbytes(rng.randrange(1, 64)), content * 2, b""])
    )


def overwrite(folder: Path, rng: random.Random) -> None:
    path = any_file(folder, rng)
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    length = rng.choice([1, 4, 8, 64])
    content[start : start + length] = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length), b"[" * 20000])
    path.write_bytes(content)


def edit_json(folder: Path, rng: random.Random) -> None:
    names = ["config.json", "config.json", "model.safetensors.index.json", "generation_config.json", "tokenizer_config.json"]
    path = folder / rng.choice([*names, "tokenizer.json"])
    tree = json.loads(path.read_text())
    coded_part = tree.get("quantization_config")
    for _ in range(rng.choice([1, 1, 2])):
        edit_tree(coded_part if coded_part and rng.random() < 0.5 else tree, rng)
    path.write_text(json.dumps(tree))


def edit_header(folder: Path, rng: random.Random) -> None:
    path = weight_file(folder)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    edit_tree(header, rng)
    text = json.dumps(header).encode()
    declared = len(text) if rng.random() < 0.8 else rng.choice([0, 1, len(text) - 1, 2**32, 2**63, 2**64 - 1])
    path.write_bytes(struct.pack("<Q", declared) + text + content[8 + length :])


def edit_payload(folder: Path, rng: random.Random) -> None:
    """Bytes of one payload: of its header, of its side information or of its streams."""
    path = weight_file(folder)
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    start, stop = rng.choice([e["data_offsets"] for name, e in sorted(header.items()) if name.endswith("payload")])
    reach = rng.choice([36, 36, 120, stop - start])
    for _ in range(rng.choice([1, 1, 2, 6])):
        place = 8 + length + start + rng.randrange(min(reach, stop - start))
        kind = rng.randrange(4)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place] = rng.choice([0, 1, 127, 128, 253, 254, 255])
        elif place + 4 <= 8 + length + stop:
            content[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), rng.randbytes(4), struct.pack("<I", 2**24)])
    path.write_bytes(content)


def lose(folder: Path, rng: random.Random) -> None:
    """A file that is missing, exchanged with another, or twice."""
    path, other = any_file(folder, rng), any_file(folder, rng)
    kind = rng.randrange(3)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        shutil.copy(path, folder / f"copy-{path.name}")
    elif path != other:
        one, two = path.read_bytes(), other.read_bytes()
        path.write_bytes(two)
        other.write_bytes(one)


MUTATIONS: list[Callable[[Path, random.Random], None]] = [flip, resize, overwrite, edit_json, edit_header, edit_payload, lose]
WEIGHTS = [2, 1, 1, 4, 2, 5, 1]


def damage(original: Path, folder: Path, seed: int) -> tuple[str, bool]:
    """A damaged copy: which mutation, and whether its checksums were computed again."""
    rng = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    mutation = rng.choices(MUTATIONS, WEIGHTS)[0]
    mutation(folder, rng)
    sealed = rng.random() < 0.5
    if sealed:
        try:
            seal(folder)
        except (InputError, OSError, ValueError):
            sealed = False
    return mutation.__name__, sealed


def outcome(folder: Path, expected: str, sealed: bool, plain: bool, execution: str) -> str:
    """What opening a damaged folder came to: `refused`, `same`, `other` (only with new checksums), or what is wrong."""
    try:
        if plain:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        else:
            model, _ = load_model(folder, execution=execution)
        found = fingerprint(model)
    except InputError as error:
        message = str(error)
        if "allocate" in message:
            return f"memory: {message[:200]}"
        return "refused" if "\n" not in message and len(message) < 2000 else f"unclear: {message[:300]}"
    except MemoryError as error:
        return f"memory: {error!r}"
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        if "allocate" in str(error):
            return f"memory: {error!r}"[:300]
        # Transformers reads config.json and the index before quasitile sees the folder, and says what it finds itself.
        return "refused by Transformers" if plain else f"{type(error).__name__}: {error}"[:300]
    except Exception as error:
        return "refused by Transformers" if plain else f"{type(error).__name__}: {error}"[:300]
    if found == expected:
        return "same"
    return "other" if sealed else "loads as another model"


def check(originals: list[Path], expected: dict[Path, str], work: Path, seed: int) -> dict[str, Any]:
    """One damaged folder."""
    rng = random.Random(f"choice {seed}")
    original = rng.choice(originals)
    plain, execution = rng.random() < 0.2, "lazy" if rng.random() < 0.2 else "dense"
    mutation, sealed = damage(original, work / "model", seed)
    result = outcome(work / "model", expected[original], sealed, plain, execution)
    return {"seed": seed, "model": original.name, "mutation": mutation, "sealed": sealed, "plain": plain, "result": result}


def quiet() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)


def child(seeds: list[int], originals: list[Path], expected: dict[Path, str], work: Path, pipe: Any) -> None:
    """Check seeds one after another; the parent hears of each before it begins and after it ends."""
    quiet()
    work.mkdir(parents=True, exist_ok=True)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MORE_BYTES,) * 2)
    for seed in seeds:
        pipe.send(("begin", seed))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
        with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing), contextlib.redirect_stdout(nothing):
            result = check(originals, expected, work, seed)
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send(("end", result | {"peak_bytes": peak}))
    pipe.close()


def run(seeds: list[int], originals: list[Path], expected: dict[Path, str], work: Path) -> list[dict[str, Any]]:
    """Check all seeds, in one child after another: a new one wherever one ends early."""
    context = multiprocessing.get_context("fork")
    results, rest = [], list(seeds)
    while rest:
        batch = rest[:500]
        here, there = context.Pipe()
        process = context.Process(target=child, args=(batch, originals, expected, work, there))
        process.start()
        there.close()
        running = None
        while True:
            try:
                if not here.poll(WALL_SECONDS):
                    process.kill()
                    break
                word, value = here.recv()
            except EOFError:
                break
            running = value if word == "begin" else None
            if word == "end":
                results.append(value)
                rest.pop(0)
                if len(results) % 500 == 0:
                    print(f"{len(results)} of {len(seeds)}", file=sys.stderr, flush=True)
        process.join()
        if running is not None:
            code = process.exitcode
            results.append({"seed": running, "result": f"ended by signal {-code}" if code and code < 0 else f"exit {code}"})
            rest.pop(0)
    return results


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each outcome came, by mutation, and every one that should not have come."""
    good = ("refused", "refused by Transformers", "same", "other")
    table: dict[str, Counter] = {}
    for result in results:
        table.setdefault(result.get("mutation", "?"), Counter())[result["result"] if result["result"] in good else "wrong"] += 1
    return {
        "folders": len(results),
        "outcomes": dict(Counter(r["result"] if r["result"] in good else "wrong" for r in results)),
        "by_mutation": {name: dict(counts) for name, counts in sorted(table.items())},
        "largest_peak_bytes": max((result.get("peak_bytes", 0) for result in results), default=0),
        "wrong": [result for result in results if result["result"] not in good],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0, help="of the first folder; the others follow")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    quiet()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folders = originals(Path(scratch) / "originals")
        expected = {folder: fingerprint(load_model(folder)[0]) for folder in folders}
        seeds = list(range(given.seed, given.seed + given.count))
        found = summary(run(seeds, folders, expected, Path(scratch) / "work"))
    found["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(found, indent=2))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
