"""Text for calibration and alignment: given, or sampled from the model itself."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import StaticCache

from quasitile.errors import InputError
from quasitile.folders import read_jsonl, stage_folder, write_jsonl
from quasitile.progress import track
from quasitile.runtime import device_of, load_model
from quasitile.settings import ComputeSettings


class SampleSettings(ComputeSettings):
    """How text is sampled from the model itself."""

    num_texts: int = Field(default=512, ge=1)
    num_tokens: int = Field(default=128, ge=8, description="a text")
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0, description="0 for no limit")
    batch_size: int = Field(default=256, ge=1)
    seed: int = 0


def sample(model: str | Path, out: str | Path, settings: SampleSettings | None = None) -> dict[str, Any]:
    """Write `samples.jsonl`: general text in the model's own words, for when no text is given.

    Args:
        model: A model folder or hub name.
        out: The folder to make.
        settings: See `SampleSettings`.

    Returns:
        The summary.
    """
    settings = settings or SampleSettings()
    loaded, tokenizer = load_model(model, torch.bfloat16, device=device_of(settings.device))
    generator = torch.Generator().manual_seed(settings.seed)
    starts = range(0, settings.num_texts, settings.batch_size)
    texts: list[str] = []
    with stage_folder(out, "sample", settings, settings.seed, model=model) as stage:
        for start in track(starts, "sample text from the model"):
            count = min(settings.batch_size, settings.num_texts - start)
            tokens = sample_tokens(loaded, tokenizer, count, settings, generator)
            texts += tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        rows = [{"text": text.strip()} for text in texts if text.strip()]
        write_jsonl(stage.path / "samples.jsonl", rows)
        stage.summary |= {"num_texts": len(rows), "num_characters": sum(len(row["text"]) for row in rows)}
    return stage.summary


@torch.inference_mode()
def sample_tokens(model: Any, tokenizer: Any, count: int, settings: SampleSettings, generator: torch.Generator) -> Tensor:
    """`count` token sequences (count, num_tokens), drawn token by token from the model's distribution."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise InputError("the tokenizer has neither a begin nor an end token to start from; give a text file instead")
    tokens = torch.full((count, 1), int(start))
    cache, drawn = StaticCache(model.config, max_cache_len=settings.num_tokens), [tokens]
    keyword = cache_keyword(model)
    for _ in range(settings.num_tokens):
        output = model(tokens, use_cache=True, **{keyword: cache})
        logits = output.logits[:, -1].cpu().float() / settings.temperature
        if settings.top_k:
            floor = logits.topk(min(settings.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < floor, float("-inf"))
        cumulative = logits.softmax(-1).cumsum(-1)
        place = torch.rand(count, 1, generator=generator) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, place).clamp_max(logits.shape[-1] - 1)
        drawn.append(tokens)
    return torch.cat(drawn[1:], dim=1)


def cache_keyword(model: Any) -> str:
    """What a model calls its keys and values, as an argument and in its outputs; Transformers renamed them in 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def read_texts(path: str | Path) -> list[str]:
    """Texts of a JSON-lines file with a `text` key, or of a plain text file.

    Raises:
        InputError: There is none.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        texts = [str(row["text"]) for row in read_jsonl(path) if row.get("text")]
    elif path.is_file():
        texts = [path.read_text(encoding="utf-8")]
    else:
        raise InputError(f"{path} does not exist; give a .jsonl file with a `text` key, or a text file")
    if not any(text.strip() for text in texts):
        raise InputError(f"{path} holds no text; give a file whose rows have a non-empty `text`")
    return texts


def token_windows(tokenizer: Any, texts: list[str], length: int, count: int, seed: int = 0, from_end: bool = False) -> Tensor:
    """Windows of tokens (count, length), cut without overlap and drawn in random order.

    Fewer windows come back where the texts are shorter; they are never repeated. Calibration draws from the
    beginning of the order, training `from_end`: a model is damaged much less on the text it was calibrated on, so
    held-out windows should not be among it.

    Raises:
        InputError: The texts hold less than one window.
    """
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]
    num_windows = len(stream) // length
    if num_windows < 1:
        raise InputError(f"the text holds {len(stream)} tokens, fewer than one window of {length}; give more text")
    windows = torch.tensor(stream[: num_windows * length]).view(num_windows, length)
    order = torch.randperm(num_windows, generator=torch.Generator().manual_seed(seed))
    return windows[(order.flip(0) if from_end else order)[:count]]
