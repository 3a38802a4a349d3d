"""Losses to TensorBoard, trackio, wandb, MLflow and others, through Transformers' own callbacks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quasitile.errors import InputError


class Reports:
    """The callbacks of a training run.

    Args:
        names: As `report_to` of Transformers' trainer takes them; none for no report.
        model: For callbacks that want to see it.
        num_steps: Of the run.
        folder: For callbacks that write files, below `runs/` there.

    Raises:
        InputError: A name is unknown, or its package is not installed.
    """

    def __init__(self, names: Sequence[str], model: Any, num_steps: int, folder: Path | None = None) -> None:
        self.callbacks: list[Any] = []
        if not names:
            return
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from transformers.integrations import get_reporting_integration_callbacks

        place = str(folder or tempfile.gettempdir())
        try:
            self.callbacks = [callback() for callback in get_reporting_integration_callbacks(list(names))]
            self.arguments = TrainingArguments(output_dir=place, report_to="none", use_cpu=True, max_steps=num_steps)
        except (ValueError, RuntimeError, ImportError) as error:
            raise InputError(f"report_to={', '.join(names)}: {' '.join(str(error).split())}") from error
        self.state, self.control = TrainerState(is_world_process_zero=True, max_steps=num_steps), TrainerControl()
        self.model = model
        self._call("on_train_begin")

    def _call(self, event: str, **values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.arguments, self.state, self.control, model=self.model, **values)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """The numbers of a step."""
        if self.callbacks:
            self.state.global_step = step
            numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
            self._call("on_log", logs=numbers)

    def end(self) -> None:
        """The run is over."""
        if self.callbacks:
            self._call("on_train_end")
