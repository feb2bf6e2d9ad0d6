"""Where metrics go: `metrics.jsonl` always, TensorBoard beside it, wandb when asked."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from reinflow.run.trackers import CLOSING_SECONDS, Sink, Tracker, close_all
from reinflow.runtime.files import plain, replace

Metrics = Mapping[str, "float | int | Tensor"]
MOST_WAITING = 10_000
"""lines of metrics that wait for a full disk"""


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


class JsonlSink:
    """One line per call: `{"step": 1000, "time": ..., "eval/return": 0.7}`; numbers that aren't finite are null.

    Lines that the disk doesn't take wait for the next call; a line is never written in part.
    """

    name = "metrics.jsonl"

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._waiting: list[str] = []

    def write(self, metrics: dict[str, float], step: int) -> None:
        """OSError while the disk takes nothing; the line is kept."""
        line = json.dumps({"step": step, "time": round(time.time(), 3), **plain(metrics)})
        self._waiting = [*self._waiting, line][-MOST_WAITING:]
        self._flush()

    def close(self) -> None:
        """Write the lines that still wait and close the file, even where the disk refuses them."""
        try:
            if self._waiting:
                self._flush()
        finally:
            os.close(self._file)

    def _flush(self) -> None:
        size = os.fstat(self._file).st_size
        data = ("\n".join(self._waiting) + "\n").encode()
        try:
            written = os.write(self._file, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self._waiting = []


class TensorBoardSink:
    """Event files in `folder`; those of a resumed run hide the steps from `purge_step` on that were logged before."""

    name = "TensorBoard"

    def __init__(self, folder: Path, purge_step: int | None = None):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Add every metric as a scalar of its own."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()


class WandbSink:
    """A wandb run of the same name and config; `WANDB_MODE=offline` needs no network."""

    name = "wandb"

    def __init__(
        self,
        folder: Path,
        project: str,
        entity: str | None,
        config: dict[str, Any],
        run_id: str,
        *,
        mode: Literal["offline"] | None = None,
    ):
        """A resumed run goes on under its `run_id`; `mode` None is what wandb's own settings say."""
        import wandb

        self.run = wandb.init(
            project=project,
            entity=entity,
            name=folder.name,
            dir=str(folder),
            config=plain(config),
            id=run_id,
            resume="allow",
            mode=mode,
            # a server that was lost during the run is not waited for, neither here nor when the interpreter ends
            settings=wandb.Settings(finish_timeout=CLOSING_SECONDS / 2),
        )

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Send all metrics of a step as one record."""
        self.run.log(metrics, step=step)

    def close(self) -> None:
        """Finish the wandb run, which waits for its upload."""
        self.run.finish()


class MetricsLog:
    """Hands every metric to `metrics.jsonl`, and to trackers, which can neither block nor end a run."""

    def __init__(self, warn: Callable[[str], None], failed: Callable[[str, OSError], None]):
        """`failed(what, error)` hears of every write that the disk refused."""
        self.warn = warn
        self.failed = failed
        self.opened = False
        self._file: JsonlSink | None = None
        self._trackers: list[Tracker] = []

    def open(self, path: Path) -> None:
        """Start `metrics.jsonl`; OSError if that can't be, since a run without its numbers is worth nothing."""
        self.opened = True
        self._file = JsonlSink(path)

    def track(self, name: str, make: Callable[[], Sink]) -> None:
        """Add a tracker; `make` runs in a thread."""
        self._trackers.append(Tracker(name, make, self.warn))

    def write(self, metrics: Metrics, step: int) -> dict[str, float]:
        """Returns the metrics as numbers."""
        values = to_host(metrics)
        for name, value in values.items():
            if not math.isfinite(value):
                self.warn(f"{name} is not finite")
        if self._file is not None:
            try:
                self._file.write(values, step)
            except OSError as error:
                self.failed(self._file.name, error)
        for tracker in self._trackers:
            tracker.write(values, step)
        return values

    def close(self) -> None:
        """Close the file and every tracker; what the disk refuses is told and ends nothing."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self.failed(self._file.name, error)
        close_all(self._trackers)
        self._file, self._trackers = None, []


def rewind_jsonl(path: Path, step: int) -> None:
    """Drop lines beyond `step` and damaged ones, so that a resumed run logs each step once."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    replace(path, "".join(kept).encode())
