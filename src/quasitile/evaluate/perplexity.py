"""How well a model predicts a text: nats a token, perplexity, bits a character."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from quasitile.evaluate.batches import encode, inference, start_token, window_length


def text_loss(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    length: int = 512,
    max_tokens: int | None = None,
    batch_size: int = 8,
    spread: bool = False,
) -> dict[str, float]:
    """Sum the negative log-likelihood over non-overlapping windows of a stream of texts.

    The texts are joined by the end-of-text token behind one start token. Every token after the
    start is predicted exactly once, from the tokens before it in its window and the one token
    before the window. Log-probabilities are float32, sums float64.

    Args:
        model: A causal language model of Transformers.
        tokenizer: Its tokenizer.
        texts: The texts; no more of them are read than `max_tokens` needs, unless windows are spread.
        length: Predicted tokens a window, at most what the model can see.
        max_tokens: Predicted tokens altogether; `None` takes all.
        batch_size: Windows in one forward pass.
        spread: Whether `max_tokens` are windows spread evenly over all texts, instead of the first tokens.

    Returns:
        `nats_per_token`, `perplexity` (its exponential), `bits_per_character` (all nats over the
        characters of the texts) and `num_tokens`.

    Raises:
        ValueError: The texts hold no token.
    """
    length = window_length(model, length)
    if spread and max_tokens is not None:
        batches, num_characters = spread_windows(tokenizer, texts, length, max_tokens, batch_size)
    else:
        stream, num_characters = token_stream(tokenizer, texts, max_tokens)
        batches = list(windows(stream, length, batch_size))
    num_tokens = sum(batch[:, 1:].numel() for batch in batches)
    if num_tokens < 1:
        raise ValueError("texts hold no token; give at least one text that is not empty")
    nats = 0.0
    with inference(model) as device:
        for batch in batches:
            window = batch.to(device)
            logits = model(input_ids=window[:, :-1], use_cache=False).logits
            losses = cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten(), reduction="none")
            nats += losses.double().sum().item()
    return {
        "nats_per_token": nats / num_tokens,
        "perplexity": math.exp(min(nats / num_tokens, 700.0)),  # beyond 700 nats a float64 overflows
        "bits_per_character": nats / math.log(2) / max(num_characters, 1),
        "num_tokens": num_tokens,
    }


def token_stream(tokenizer: Any, texts: Iterable[str], max_tokens: int | None = None) -> tuple[list[int], int]:
    """A start token, then the texts joined by end-of-text tokens; and the characters they hold.

    Args:
        tokenizer: Encodes without special tokens.
        texts: Read only as far as needed.
        max_tokens: The most tokens after the start. The characters of a text that is cut are those
            of its decoded remainder.
    """
    stream, num_characters = [start_token(tokenizer)], 0
    limit = math.inf if max_tokens is None else max_tokens + 1
    end = start_token(tokenizer) if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    for text in texts:
        if len(stream) >= limit:
            break
        if not text:
            continue
        tokens = encode(tokenizer, text)
        separator = [end] if len(stream) > 1 else []
        if len(stream) + len(separator) + len(tokens) > limit:
            tokens = tokens[: int(limit) - len(stream) - len(separator)]
            text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        stream += separator + tokens
        num_characters += len(text)
    return stream, num_characters


def windows(stream: list[int], length: int, batch_size: int) -> Iterable[Tensor]:
    """Cut a stream into batches of windows of `length + 1` tokens (B, T + 1), each sharing one token with the next.

    Predicting every token of a window from those before it predicts each token of the stream but
    the first exactly once. The last window may be shorter and then stands alone.
    """
    starts = range(0, len(stream) - 1, length)
    whole = [stream[start : start + length + 1] for start in starts]
    rest = [whole.pop()] if whole and len(whole[-1]) < length + 1 else []
    for first in range(0, len(whole), batch_size):
        yield torch.tensor(whole[first : first + batch_size])
    if rest:
        yield torch.tensor(rest)


def spread_windows(
    tokenizer: Any, texts: Iterable[str], length: int, max_tokens: int, batch_size: int
) -> tuple[list[Tensor], int]:
    """Windows of at most `max_tokens` predicted tokens altogether, spread evenly over a stream of texts.

    Texts differ more than places in one text, so these say more about all of them than the first tokens would.

    Returns:
        Batches of windows (B, T + 1), as `windows` gives them, and the characters of what is predicted; all texts
        whole where they have no more tokens than that.
    """
    stream, num_characters = token_stream(tokenizer, texts)
    if len(stream) - 1 <= max_tokens:
        return list(windows(stream, length, batch_size)), num_characters
    length = min(length, max_tokens)
    num_there, num_wanted = (len(stream) - 1) // length, max_tokens // length
    starts = [number * num_there // num_wanted * length for number in range(num_wanted)]
    whole = [stream[start : start + length + 1] for start in starts]
    num_characters = sum(len(tokenizer.decode(row[1:], clean_up_tokenization_spaces=False)) for row in whole)
    return [torch.tensor(whole[first : first + batch_size]) for first in range(0, num_wanted, batch_size)], num_characters
