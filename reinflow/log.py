"""Where metrics go: `metrics.jsonl` always, TensorBoard beside it, wandb when asked.

A sink that fails warns once and is dropped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from reinflow.files import plain, replaced_atomically

Metrics = Mapping[str, "float | int | Tensor"]


def to_host(metrics: Metrics) -> dict[str, float]:
    """Read every scalar; all tensors of a device travel in one transfer."""
    on_device: dict[torch.device, list[str]] = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            on_device.setdefault(value.device, []).append(name)
    read: dict[str, float] = {}
    for names in on_device.values():
        scalars = torch.stack([torch.as_tensor(metrics[name]).detach().reshape(()).double() for name in names])
        read.update(zip(names, scalars.tolist(), strict=True))
    return {name: read[name] if name in read else float(value) for name, value in metrics.items()}


class Sink(Protocol):
    name: str

    def write(self, metrics: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """One line per call: `{"step": 1000, "time": ..., "eval/return": 0.7}`; numbers that aren't finite are null."""

    name = "metrics.jsonl"

    def __init__(self, path: Path):
        self.file = path.open("a", buffering=1)

    def write(self, metrics: dict[str, float], step: int) -> None:
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 3), **plain(metrics)}) + "\n")

    def close(self) -> None:
        self.file.close()


class TensorBoardSink:
    name = "TensorBoard"

    def __init__(self, folder: Path, purge_step: int | None = None):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandbSink:
    """A wandb run of the same name and config; `WANDB_MODE=offline` needs no network."""

    name = "wandb"

    def __init__(self, folder: Path, project: str, entity: str | None, config: dict[str, Any]):
        import wandb

        self.run = wandb.init(project=project, entity=entity, name=folder.name, dir=str(folder), config=plain(config))

    def write(self, metrics: dict[str, float], step: int) -> None:
        self.run.log(metrics, step=step)

    def close(self) -> None:
        self.run.finish()


class MetricsLog:
    """Hands every metric to every sink that still works."""

    def __init__(self, warn: Callable[[str], None]):
        self.warn = warn
        self.sinks: list[Sink] = []
        self.opened = False

    def open(self, name: str, make: Callable[[], Sink]) -> None:
        """Add a sink; training goes on without it when it can't be made."""
        self.opened = True
        try:
            self.sinks.append(make())
        except Exception as error:  # third-party trackers raise anything, and no tracker is worth a training run
            self.warn(f"no {name} log: {type(error).__name__}: {error}")

    def write(self, metrics: Metrics, step: int) -> dict[str, float]:
        """Returns the metrics as numbers."""
        values = to_host(metrics)
        for name, value in values.items():
            if not math.isfinite(value):
                self.warn(f"{name} is not finite")
        self._each(lambda sink: sink.write(values, step))
        return values

    def close(self) -> None:
        self._each(lambda sink: sink.close())
        self.sinks = []

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                act(sink)
            except Exception as error:  # as in `open`: a full disk or a lost server must not end the run
                self.sinks.remove(sink)
                self.warn(f"the {sink.name} log stopped: {type(error).__name__}: {error}")


def rewind_jsonl(path: Path, step: int) -> None:
    """Drop lines beyond `step` and a line that a kill cut short, so that a resumed run logs each step once."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            continue
    with replaced_atomically(path) as temporary:
        temporary.write_text("".join(kept))
