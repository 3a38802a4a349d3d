"""Every stage that runs models, on a device: `python -m tests.runtime.on_device DEVICE FOLDER`.

FOLDER holds `dense`, `compressed`, `factors` and `reading`, and `text.jsonl`; results go to FOLDER/DEVICE.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from quasitile import (
    AdaptSettings,
    AlignSettings,
    CompressSettings,
    EvaluateSettings,
    RecordSettings,
    SampleSettings,
    adapt,
    align,
    compress,
    evaluate,
    record,
    sample,
)
from quasitile.progress import set_quiet
from quasitile.reading.questions.client import ModelSettings, local_completion
from quasitile.runtime import load_model, set_execution

ALIGN = {
    "num_steps": 4, "batch_size": 4, "num_tokens": 32, "held_out_windows": 4, "save_every": 2, "precision": "float32",
    "learning_rate": 0.1, "price_bits": False,
}  # fmt: skip
ADAPT = {"steps_per_section": 2, "text_tokens": 32, "replay_windows": 2, "replay_tokens": 32, "max_new_tokens": 4}


CALIBRATION = {"num_windows": 6, "num_tokens": 32}
STREAMED = {"stream": "yes", "propagate": "corrected", "gradients": "midway"}
COMPRESS = {"size": "30%", "tiling": {"short": 16}, "calibration": CALIBRATION, "workers": 1}


def main(device: str, folder: Path) -> None:
    """Run everything; one JSON object with numbers to compare."""
    torch.set_num_threads(1)
    set_quiet(True)
    out, text, dense = folder / device, folder / "text.jsonl", folder / "dense"
    plain, factors, reading = folder / "compressed", folder / "factors", folder / "reading"
    numbers: dict[str, float] = {}

    def note(name: str, summary: dict[str, float], *keys: str) -> None:
        numbers.update({f"{name}: {key}": summary[key] for key in keys})

    damages = "damage_before_nats", "damage_after_nats"
    for stream in ("no", "yes"):
        settings = RecordSettings(num_windows=12, num_tokens=32, stream=stream, device=device)
        note(
            f"record, stream {stream}", record(dense, out / f"record-{stream}", text=text, settings=settings), "nats_per_token"
        )
    for name, model, teacher, changes in (
        ("align", factors, dense, {"price_bits": True}),
        ("align with what was recorded", factors, out / "record-yes", {"divergence": "w1", "hidden_weight": 1.0}),
        ("align layer by layer", factors, dense, {"layer_steps": 2, "gradient_accumulation": 2, "checkpointing": True}),
        ("align cut-offs", factors, dense, {"cut_offs": True, "reading": "vocabulary", "language_model_weight": 0.5}),
    ):
        settings = AlignSettings(**{**ALIGN, **changes, "device": device})
        note(name, align(model, out / name, teacher=teacher, text=text, settings=settings), *damages)
    for name, model, teacher, changes in (
        ("adapt", plain, dense, {"learning_rate": 0.1, "forget_nats": 1e-4}),
        ("adapt factors by use", factors, None, {"select": "usage", "trains": "spectral"}),
        (
            "adapt with guidance",
            plain,
            dense,
            {"guidance_weight": 1.0, "follow_ups": 1, "select": "all", "checkpointing": True},
        ),
    ):
        settings = AdaptSettings.model_validate({**ADAPT, **changes, "device": device})
        summary = adapt(model, reading, out / name, teacher=teacher, text=text, settings=settings)
        note(name, summary, "general_before_nats", "general_after_nats", "answers_stored_nats")
    for name, changes in (
        ("compress", {"calibration": {**CALIBRATION, "gradients": "midway"}}),
        ("compress, ordered", {"order": "energy", "tiling": {"name": "hierarchical", "short": 16}, "max_rank": 2}),
        ("compress from shards", {"size": "20%", "calibration": {**CALIBRATION, **STREAMED}}),
        ("compress behind coded layers", {"calibration": {**CALIBRATION, "stream": "yes", "propagate": "compressed"}}),
        ("compress with modegpt", {"modules": "modegpt", "calibration": {**CALIBRATION, "propagate": "original"}}),
    ):
        settings = CompressSettings.model_validate({**COMPRESS, **changes, "device": device})
        note(name, compress(dense, out / name, text=text, settings=settings), "predicted_damage_nats", "stored_bytes")
    measured = evaluate(
        {"original": dense, "compressed": plain}, out / "evaluation", reading=reading, general=text,
        settings=EvaluateSettings(general_tokens=128, num_questions=4, max_new_tokens=4, device=device),
    )["models"]["compressed"]  # fmt: skip
    numbers["evaluate: general"] = measured["general"]["nats_per_token"]
    numbers["evaluate: divergence"] = measured["divergence"]["logit_kl_nats"]
    sampled = SampleSettings(num_texts=2, num_tokens=8, device=device)
    note("sample", sample(dense, out / "sample", sampled), "num_characters")
    asked = ModelSettings(path=str(dense), max_tokens=8, device=device)
    numbers["read"] = len(local_completion(asked)("the band gap", None)[0])
    for model in (plain, factors):
        loaded, _ = load_model(model, device=torch.device(device))
        for execution in ("dense", "factored", "lazy"):
            set_execution(loaded, execution)
            with torch.no_grad():
                numbers[f"{model.name}, {execution}"] = float(loaded(torch.arange(12)[None]).logits.square().mean())
    (out / "numbers.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    name, place = sys.argv[1:]
    if name == "pretend":
        from tests.runtime import pretend_device  # noqa: F401
    main(name, Path(place))
