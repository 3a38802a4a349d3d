"""What calibration reads: windows of general text, and of what a model was taught by reading."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quasitile.compress.text import read_texts, token_windows
from quasitile.errors import InputError
from quasitile.folders import read_jsonl
from quasitile.progress import say

if TYPE_CHECKING:
    from quasitile.compress.settings import CalibrationSettings

QUESTIONS = "questions.jsonl"  # of a reading, and of a model that has read (docs/data.md)
HELD_OUT_WINDOWS = 16
Messages = list[dict[str, Any]]


def usable_reading(reading: str | Path | None, amount: CalibrationSettings) -> Path | None:
    """The reading that calibration takes a part from, or nothing; whichever of folder and share is left unused is named.

    Raises:
        InputError: The folder is no reading, or it teaches nothing.
    """
    if reading is None:
        if "reading_share" in amount.model_fields_set:
            say("  calibration.reading_share is not used: there is no reading (give --reading)")
        return None
    taught(reading)
    if round(amount.reading_share * amount.num_windows) < 1:
        say(f"  {reading} is not used: no window is its share (raise calibration.reading_share or calibration.num_windows)")
        return None
    return Path(reading)


def calibration_windows(
    tokenizer: Any, text: str | Path, amount: CalibrationSettings, seed: int, reading: Path | None = None
) -> Tensor:
    """Windows of tokens (count, num_tokens): general text, and behind it what the reading teaches.

    No token is repeated. Where the reading holds less than its share, general text takes the place; where the text is short,
    the reading takes its share of what there is.

    Args:
        tokenizer: The model's.
        text: General text, see `read_texts`.
        amount: Windows, their length, and the reading's share of them.
        seed: Draws the windows of text, and the order of the questions.
        reading: A folder that `read` made, or `adapt`, which keeps the questions that it taught.

    Raises:
        InputError: The text holds less than one window, or the reading teaches nothing.
    """
    length = amount.num_tokens
    general = token_windows(tokenizer, read_texts(text), length, amount.num_windows, seed)
    if reading is None:
        return general
    num_windows = min(amount.num_windows, len(general) / (1 - amount.reading_share))
    wanted = max(1, round(amount.reading_share * num_windows))
    ids = exchange_stream(tokenizer, taught(reading), wanted * length, seed)
    if len(ids) < wanted * length:
        say(
            f"  {reading} holds {len(ids)} tokens of the {wanted * length} that "
            f"calibration.reading_share={amount.reading_share:g} asks for; general text takes the rest"
        )
    num_whole, rest = divmod(len(ids), length)
    whole, begun = ids.split((num_whole * length, rest))
    general = general[: amount.num_windows - num_whole]
    general[-1:, :rest] = begun  # goes on as general text
    return torch.cat((general, whole.view(num_whole, length)))


def held_out_windows(tokenizer: Any, text: str | Path, amount: CalibrationSettings, seed: int) -> Tensor:
    """General text that calibration does not read, at most `HELD_OUT_WINDOWS` (count, num_tokens); none where it reads all."""
    count = amount.num_windows + HELD_OUT_WINDOWS
    return token_windows(tokenizer, read_texts(text), amount.num_tokens, count, seed)[amount.num_windows :]


def taught(reading: str | Path) -> list[Messages]:
    """What a reading teaches: its questions of the training split with their answers, in every wording that is trained.

    Held-out documents and held-out wordings are other splits.

    Raises:
        InputError: The folder is no reading, or has no such question.
    """
    path = Path(reading) / QUESTIONS
    if not path.is_file():
        raise InputError(f"{reading} is no reading: it has no {QUESTIONS}; give a folder that `quasitile read` or `adapt` made")
    records = read_jsonl(path)
    for number, record in enumerate(records, 1):
        if not is_question(record):
            raise InputError(f"{path}: record {number} is no question with its answer and split; read the papers again")
    found = [record["messages"] for record in records if record["metadata"]["split"] == "train"]
    if not found:
        raise InputError(f"{reading} holds no question to train on; read papers that are not all held out")
    return found


def is_question(record: dict[str, Any]) -> bool:
    """Whether a line of questions.jsonl has what is used of it here."""
    metadata, messages = record.get("metadata"), record.get("messages")
    if not isinstance(metadata, dict) or "split" not in metadata or not isinstance(messages, list) or len(messages) < 2:
        return False
    return all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)


def exchange_stream(tokenizer: Any, exchanges: list[Messages], limit: int, seed: int) -> Tensor:
    """At most `limit` token ids of questions and answers, end to end, in an order drawn with the seed."""
    stream: list[int] = []
    for index in torch.randperm(len(exchanges), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(stream) >= limit:
            break
        for part in exchange(tokenizer, exchanges[index]):
            stream += tokenizer(part, add_special_tokens=False)["input_ids"]
    return torch.tensor(stream[:limit], dtype=torch.long)


def exchange(tokenizer: Any, messages: Messages, trace: str = "none") -> tuple[str, str]:
    """A question as the model is asked it, and how its answer goes on from there.

    Args:
        tokenizer: With a chat template; without one, `Question: ...` and `Answer: ...`.
        messages: The user's and the assistant's.
        trace: `none`, `before` or `after`: where the template puts the reasoning.
    """
    if tokenizer.chat_template is None:
        return f"Question: {messages[0]['content']}\nAnswer:", f" {messages[-1]['content']}{tokenizer.eos_token or ''}"
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    return prompt, tokenizer.apply_chat_template(messages, tokenize=False, trace=trace).removeprefix(prompt)
