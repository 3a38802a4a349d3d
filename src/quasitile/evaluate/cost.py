"""What a model costs: numbers at rest, bytes in memory, tokens a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from quasitile.evaluate.batches import inference, window_length
from quasitile.folders import peak_memory_bytes, read_json
from quasitile.runtime import model_folder
from quasitile.runtime.lora import adapter_base

STATUS = Path("/proc/self/status")
SAMPLING_SECONDS = 0.01


def stored_parameters(location: str | Path, model: Any) -> int:
    """The numbers a model's folder stores: from its `summary.json` if it says so, else the model's parameters.

    Of an adapter: its own, and those of the model that it needs.
    """
    base, own = adapter_base(location), 0
    if base is not None:
        own = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    summary = model_folder(location if base is None else base) / "summary.json"
    if summary.is_file() and "stored_parameters" in (recorded := read_json(summary)):
        return int(recorded["stored_parameters"]) + own
    return sum(parameter.numel() for parameter in model.parameters())


def resident_bytes(model: Any) -> int:
    """The bytes of a loaded model's parameters and buffers, shared ones counted once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def running_cost(model: Any, *, prefill_tokens: int = 256, decode_tokens: int = 32, seed: int = 0) -> dict[str, float]:
    """Time reading a prompt and writing after it, one sequence at a time, after a run to warm up.

    Args:
        model: A causal language model.
        prefill_tokens: The prompt's length; its tokens are random.
        decode_tokens: The tokens to write, with the cache of `generate`.
        seed: Draws the prompt.

    Returns:
        `prefill_tokens_per_second`, `decode_tokens_per_second`, `peak_memory_bytes` (of the device,
        or of the whole process on a CPU, while the model ran).
    """
    length = min(prefill_tokens, window_length(model) - decode_tokens - 1)
    config = GenerationConfig(do_sample=False, max_new_tokens=decode_tokens, min_new_tokens=decode_tokens, pad_token_id=0)
    generator = torch.Generator().manual_seed(seed)
    with inference(model) as device, peak_memory(device) as peak:
        tokens = torch.randint(model.config.vocab_size, (1, length), generator=generator).to(device)
        model(input_ids=tokens[:, :8], use_cache=False)
        prefill_seconds = _seconds(lambda: model(input_ids=tokens, use_cache=False), device)
        start = tokens[:, :1]
        decode_seconds = _seconds(
            lambda: model.generate(input_ids=start, attention_mask=torch.ones_like(start), generation_config=config), device
        )
    return {
        "prefill_tokens_per_second": length / prefill_seconds,
        "decode_tokens_per_second": decode_tokens / decode_seconds,
        "peak_memory_bytes": max(peak),
    }


def _seconds(run: Any, device: torch.device) -> float:
    """How long a call takes, work queued on a GPU included."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    """Wait for work queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yield a list that holds, after the block, the most bytes that were in use during the block.

    On a CPU a thread looks at the process's resident size every 10 ms. Where the system does not
    tell, the largest size of the process so far stands in.
    """
    seen: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield seen
        seen.append(torch.cuda.max_memory_allocated(device))
        return
    done = threading.Event()

    def sample() -> None:
        seen.append(process_bytes())
        while not done.wait(SAMPLING_SECONDS):
            seen.append(process_bytes())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield seen
    finally:
        done.set()
        sampler.join()


def process_bytes() -> int:
    """The resident size of this process now, or its largest so far where the system does not tell."""
    if not STATUS.is_file():
        return peak_memory_bytes()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
