"""What a training run needs to go on where it was stopped: tensors without pickle, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.checkpoint.shards import checksum
from quasitile.checkpoint.streams import TensorReader, save_tensors
from quasitile.folders import Stage, read_json, write_json

FOLDER, MARK, POINT = "state", "purpose.json", "point.json"


class State:
    """The state of a training run, inside the folder of its stage.

    Args:
        stage: Its folder; what another run left there is removed.
        purpose: What the run depends on, as JSON can hold it.
        parameters: That are trained, in a fixed order.
        optimizer: Over them, AdamW.
    """

    def __init__(self, stage: Stage, purpose: Any, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.stage, self.parameters, self.optimizer = stage, parameters, optimizer
        self.folder = stage.path / FOLDER
        mark = hashlib.sha256(json.dumps(purpose, sort_keys=True, default=str).encode()).hexdigest()
        known = self.folder / MARK
        if not known.is_file() or read_json(known) != mark:
            for path in stage.path.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.folder.mkdir(parents=True)
            write_json(known, mark)

    def save(self, step: int, **values: Any) -> None:
        """Keep everything as it is after a step."""
        tensors: dict[str, Tensor] = {}
        for number, parameter in enumerate(self.parameters):
            tensors[f"{number}"] = parameter.detach()
            tensors |= {f"{number}.{key}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        path = self.folder / f"{step:08d}.safetensors"
        save_tensors(path, {name: tensor.cpu().contiguous().reshape(tensor.shape or (1,)) for name, tensor in tensors.items()})
        write_json(self.folder / POINT, {"step": step, "file": path.name, "sha256": checksum(path), **values})
        for old in self.folder.glob("*.safetensors"):
            if old != path:
                old.unlink()

    @torch.no_grad()
    def restore(self) -> dict[str, Any]:
        """Put back what was kept; the values given to `save`, with `step` 0 where nothing was."""
        point = self.folder / POINT
        found: dict[str, Any] = read_json(point) if point.is_file() else {"step": 0}
        path = self.folder / found.get("file", "none")
        if not path.is_file() or checksum(path) != found["sha256"]:
            found = {"step": 0}
        else:
            reader = TensorReader(path)
            for number, parameter in enumerate(self.parameters):
                parameter.copy_(reader.read(f"{number}").view_as(parameter))
                keys = [name.partition(".")[2] for name in reader.headers if name.startswith(f"{number}.")]
                if keys:
                    values = {key: reader.read(f"{number}.{key}") for key in keys}
                    self.optimizer.state[parameter] = {
                        key: value.view(()) if key == "step" else value.view_as(parameter).to(parameter.device)
                        for key, value in values.items()
                    }
        self._cut_metrics(found["step"])
        return found

    def _cut_metrics(self, step: int) -> None:
        """Forget what was written of later steps."""
        path = self.stage.path / "metrics.jsonl"
        if path.is_file():
            lines = path.read_bytes().splitlines(keepends=True)
            os.truncate(path, sum(len(line) for line in lines[:step]))

    def forget(self) -> None:
        """Remove everything: the run has come to its end."""
        shutil.rmtree(self.folder)
