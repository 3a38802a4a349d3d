"""The original only once: what it makes of a text, on disk, for alignment without it.

Shapes: B windows of a file, T tokens, K likely next tokens, D hidden.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quasitile.align.losses import language_model_nats
from quasitile.align.settings import RecordSettings
from quasitile.checkpoint.shards import checksum
from quasitile.checkpoint.streams import TensorReader, save_tensors
from quasitile.compress import CompressSettings
from quasitile.compress.from_shards import wants_stream
from quasitile.compress.journal import FILE, Journal
from quasitile.compress.pieces import Pieces
from quasitile.compress.states import StateWriter, read_states
from quasitile.compress.text import read_texts, token_windows
from quasitile.errors import InputError
from quasitile.folders import read_json, read_jsonl, stage_folder, write_json
from quasitile.progress import track
from quasitile.runtime import device_of, load_config, load_model, load_tokenizer
from quasitile.runtime.device import moved
from quasitile.runtime.skeleton import Skeleton

STATES = "states"


@dataclass
class Targets:
    """What the original made of a batch.

    Attributes:
        hidden: (B, T, D) a layer, or nothing.
        logits: (B, T, V), or nothing where only the likeliest are known.
        ids: (B, T, K) the likeliest next tokens.
        log_probabilities: (B, T, K) of them.
    """

    hidden: list[Tensor] | None = None
    logits: Tensor | None = None
    ids: Tensor | None = None
    log_probabilities: Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        """The same on a device."""
        return Targets(**{field.name: moved(getattr(self, field.name), device) for field in fields(self)})


def record(model: str | Path, out: str | Path, *, text: str | Path, settings: RecordSettings | None = None) -> dict[str, Any]:
    """Keep what the original makes of a text: its likeliest next tokens and its hidden states.

    `align` takes the folder in the place of the original. Every file has its SHA-256 in the journal; a run that was
    killed goes on with the file it had not finished. A model that would fill the memory is run one layer at a time.

    Args:
        model: The original.
        out: The folder to make.
        text: Unlabelled general text, as for `align`.
        settings: See `RecordSettings`.

    Returns:
        The summary.

    Raises:
        InputError: The model or the text cannot be used.
    """
    settings = settings or RecordSettings()
    tokenizer = load_tokenizer(model)
    windows = token_windows(
        tokenizer, read_texts(text), settings.num_tokens, settings.num_windows, settings.seed, from_end=True
    )
    with stage_folder(out, "record", settings, settings.seed, resume=True, model=model, text=text) as stage:
        purpose = {"model": str(model), "windows": windows.double().mul(torch.arange(1, windows.shape[1] + 1)).sum().item()}
        journal = Journal(stage.path, {**purpose, **settings.model_dump(mode="json")})
        missing = [
            (number, batch)
            for number, batch in enumerate(windows.split(settings.batch_size))
            if journal.recall(str(number)) is None
        ]
        for number, tensors in passes(model, missing, settings, journal.folder):
            file = f"{number:06d}.safetensors"
            save_tensors(stage.path / file, tensors)
            journal.done(str(number), file)
        shutil.rmtree(journal.folder / STATES, ignore_errors=True)
        nats = [float(TensorReader(stage.path / line["file"]).read("nats").mean()) for line in journal.entries.values()]
        num_bytes = sum(path.stat().st_size for path in stage.path.glob("*.safetensors"))
        stage.summary |= {
            "vocabulary_size": load_config(model).vocab_size,
            "num_windows": len(windows),
            "num_tokens": windows.numel(),
            "stored_bytes": num_bytes,
            "nats_per_token": sum(nats) / len(nats),
        }
        write_json(stage.path / "windows.json", {"batch_size": settings.batch_size, "num_windows": len(windows)})
    return stage.summary


def passes(
    model: str | Path, missing: list[tuple[int, Tensor]], settings: RecordSettings, work: Path
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Number and tensors of every file that is missing."""
    if not missing:
        return
    if wants_stream(model, CompressSettings.model_validate({"calibration": {"stream": settings.stream}})):
        yield from streamed_passes(model, missing, settings, work / STATES)
        return
    loaded = load_model(model, device=device_of(settings.device))[0]
    with torch.inference_mode():
        for number, batch in track(missing, "record the original"):
            output = loaded(batch, output_hidden_states=settings.hidden, use_cache=False)
            yield number, kept(batch, output.logits, list(output.hidden_states or ()), settings)


@torch.no_grad()
def streamed_passes(
    model: str | Path, missing: list[tuple[int, Tensor]], settings: RecordSettings, folder: Path
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The same with one decoder layer in memory at a time; states wait on disk in float32."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    skeleton, device = Skeleton(model), device_of(settings.device)
    skeleton.compute_on(device)
    pieces = Pieces(skeleton)
    missing = [(number, batch.to(device)) for number, batch in missing]
    windows = torch.cat([batch for _, batch in missing])
    starts = [sum(len(batch) for _, batch in missing[:index]) for index in range(len(missing))]
    pieces.skeleton.load(pieces.outside)
    writer = StateWriter(folder / "0")
    for _, batch in missing:
        writer.write(pieces.before(batch))
    writer.finish()
    pieces.drop()
    for index in track(range(len(pieces.layers)), "record the original, layer by layer"):
        pieces.load_layer(index)
        writer = StateWriter(folder / str(index + 1))
        for start, (_, batch) in zip(starts, missing, strict=True):
            given = read_states(folder / str(index), start, batch, len(windows)).to(device)
            writer.write(pieces.layer(index, batch, given))
        writer.finish()
        pieces.drop()
    pieces.skeleton.load(pieces.outside)
    last = len(pieces.layers)
    for start, (number, batch) in zip(starts, missing, strict=True):
        states = [read_states(folder / str(index), start, batch, len(windows)).to(device) for index in range(last + 1)]
        output = pieces.after(batch, states[-1])
        yield number, kept(batch, output.logits, [*states[:-1], normed(pieces, batch, states[-1])], settings)
    pieces.drop()


def normed(pieces: Pieces, batch: Tensor, last: Tensor) -> Tensor:
    """The last hidden states as Transformers gives them: after the final norm."""
    seen: list[Tensor] = []
    head = pieces.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        pieces.after(batch, last)
    finally:
        handle.remove()
    return seen[0] if seen else last


def kept(batch: Tensor, logits: Tensor, hidden: list[Tensor], settings: RecordSettings) -> dict[str, Tensor]:
    """The tensors of a file."""
    predicted = logits.float().log_softmax(-1)
    values, ids = predicted.topk(min(settings.top_k, logits.shape[-1]), dim=-1)
    nats = torch.stack([language_model_nats(logits[row : row + 1], batch[row : row + 1]) for row in range(len(batch))])
    tensors = {"tokens": batch.int(), "ids": ids.int(), "log_probabilities": values, "nats": nats}
    if settings.hidden:
        tensors |= {f"hidden.{index}": states.to(torch.bfloat16) for index, states in enumerate(hidden)}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


class Recording:
    """What `record` kept, in the place of the original.

    Raises:
        InputError: The folder is no recording, or a file is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        shape, summary = read_json(self.folder / "windows.json"), read_json(self.folder / "summary.json")
        self.batch_size, self.vocabulary_size = shape["batch_size"], summary["vocabulary_size"]
        self.files = {int(line["key"]): line for line in read_jsonl(self.folder / FILE)[1:]}
        if len(self.files) * self.batch_size < shape["num_windows"]:
            raise InputError(f"{self.folder} lacks some of its files; run `quasitile record` again")
        self._checked: set[int] = set()
        self.windows = torch.cat([self._reader(number).read("tokens").long() for number in sorted(self.files)])

    def _reader(self, number: int) -> TensorReader:
        """A file, its checksum compared the first time."""
        line = self.files[number]
        path = self.folder / line["file"]
        if number not in self._checked and (not path.is_file() or checksum(path) != line["sha256"]):
            raise InputError(f"{path} is missing or damaged; run `quasitile record` again, it makes what is missing")
        self._checked.add(number)
        return TensorReader(path)

    def nats(self, rows: list[int]) -> float:
        """Nats a token of the original on some windows."""
        return float(torch.stack([self._row(row, "nats") for row in rows]).mean())

    def targets(self, rows: list[int], hidden: bool) -> Targets:
        """What the original made of some windows.

        Raises:
            InputError: Hidden states are wanted and were not kept.
        """
        out = Targets(
            ids=torch.stack([self._row(row, "ids") for row in rows]).long(),
            log_probabilities=torch.stack([self._row(row, "log_probabilities") for row in rows]),
        )
        if hidden:
            names = sorted(
                (name for name in self._reader(0).headers if name.startswith("hidden.")), key=lambda n: int(n.split(".")[1])
            )
            if not names:
                raise InputError(f"{self.folder} holds no hidden states; record them, or set align.hidden_weight=0")
            out.hidden = [torch.stack([self._row(row, name) for row in rows]).float() for name in names]
        return out

    def _row(self, row: int, name: str) -> Tensor:
        number, place = divmod(row, self.batch_size)
        return self._reader(number).rows(name, place, place + 1)[0]


def is_recording(folder: str | Path) -> bool:
    """Whether a folder is one that `record` made."""
    return (Path(folder) / "windows.json").is_file()
