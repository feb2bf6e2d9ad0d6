"""A run: its directory, device, seeds, logs, progress and status file.

    with Run.open(config.run, name="reinflow-PickCube-v1-seed0", full_config=config, total=10**6, unit="steps") as run:
        run.log({"losses/value": loss}, step=1000)
        run.progress(1000)

Makes `runs/<exp_name>/` with config.json, status.json, metrics.jsonl, train.log, checkpoints/, videos/ and TensorBoard
events. A monitor needs nothing but status.json, which says done, failed or killed when the block ends.
"""

from __future__ import annotations

import os
import time
import traceback
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from reinflow.errors import UserError
from reinflow.flags import defaults_of
from reinflow.run.compatibility import changes, refuse
from reinflow.run.config import RunConfig
from reinflow.run.directory import RunDir, TextLog, describe_run, read_config, write_config
from reinflow.run.metrics import Metrics, MetricsLog, TensorBoardSink, WandbSink, rewind_jsonl, to_host
from reinflow.run.progress import Progress
from reinflow.run.status import HEADLINES, Status
from reinflow.run.wandb_mode import usable_mode
from reinflow.runtime import distributed
from reinflow.runtime.acceleration import allow_tf32
from reinflow.runtime.gpu import hidden_gpu
from reinflow.runtime.interrupts import Interrupted, listening
from reinflow.runtime.rng import seed_globals
from reinflow.runtime.watch import Watch
from reinflow.storage.resumable import states


def pick_device(cuda: bool) -> torch.device:
    """The GPU if asked for and there, else the CPU."""
    return torch.device("cuda" if cuda and torch.cuda.is_available() else "cpu")


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed Python, NumPy and torch (all devices), and let a GPU take TF32 for all but a chain's networks."""
    seed_globals(seed)
    allow_tf32(products=True, convolutions=True)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


class Run:
    """Open with `Run.open`; a context manager that leaves a true status.json however the block ends."""

    def __init__(self, config: RunConfig, folder: RunDir, description: dict[str, Any], total: int, unit: str):
        self.config = config
        self.dir: Path = folder.path
        """the run's directory"""
        self.resumed = config.resume is not None
        """whether `latest_training(run.dir)` should be loaded"""
        self.device = pick_device(config.cuda)
        self.alarms: list[str] = []
        """distinct warnings so far"""
        self._folder = folder
        self._pid = os.getpid()
        self._stack = ExitStack()
        self._text = TextLog(self.dir / "train.log")
        self._status = Status.new(self.dir / "status.json", self.dir.name, config.seed, total, unit, self.resumed)
        self._progress = Progress(total, unit, self._write_text)
        self._logs = MetricsLog(self.alarm, self.write_failed)
        self._purge_step: int | None = None
        self._description = description
        self._wandb_mode: Literal["offline"] | None = None
        self._began = self.resumed

    @classmethod
    def open(cls, config: RunConfig, *, name: str, full_config: Any, total: int, unit: str) -> Run:
        """Make (or, to resume, take) the directory, describe the run in it, seed everything.

        `full_config` is the whole script's dataclass; `total` counts `unit`s ("env steps", "iterations"). UserError if
        the directory exists, if another process trains in it, or if a resumed run would not be the same run (see
        `reinflow.run.compatibility`); nothing is touched then. Under torchrun the first process does this and the
        others get a `Follower`.
        """
        if config.num_threads is not None:
            if config.num_threads < 1:
                raise UserError(f"--num_threads must be at least 1, got {config.num_threads}")
            torch.set_num_threads(config.num_threads)
        distributed.join(config.cuda)
        path = Path(config.runs_dir) / (config.exp_name or name)
        config = replace(continued(config, path), seed=distributed.own_seed(config.seed))
        taken = distributed.led(lambda: described(config, path, full_config))
        run = Follower(config, path) if taken is None else cls(config, *taken, total, unit)
        run.seed_everything()
        return run

    def __enter__(self) -> Run:
        self._stack.enter_context(listening(last_words=lambda: self.status(state="killed", error="stopped at once")))
        Watch.on_lost = lambda reason: self.status(state="failed", error=reason)
        self.status(state="running")
        processes = f", {distributed.world_size()} processes" if distributed.active() else ""
        self.say(f"run {self.dir} on {self.device}{processes}")
        if self.config.cuda and self.device.type == "cpu" and (reason := hidden_gpu()):
            self.alarm(f"this run is on the CPU: {reason}")
        if self.config.track:
            self._wandb_mode, warning = usable_mode(self.dir)
            if warning:
                self.alarm(warning)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if os.getpid() != self._pid:  # a forked worker leaves through here too, and the run isn't its to close
            return
        state, sentence = outcome(error)
        if isinstance(error, Interrupted):
            self.say(f"{sentence}; go on with --resume {self.dir}")
        self._logs.close()
        self._progress.close()
        if state == "failed" and not isinstance(error, UserError):
            self._text.write("".join(traceback.format_exception(kind, error, trace)))
        self.status(state=state, error=sentence)
        self._text.close()
        self._stack.close()
        never_began = isinstance(error, UserError) and not self._began
        self._folder.release(remove=never_began)
        if error is None:
            distributed.leave()

    def generator(self) -> torch.Generator:
        """A new one for what training draws on its device, from the run's seed."""
        return torch.Generator(self.device).manual_seed(self.config.seed)

    def seed_everything(self) -> None:
        """Seed Python, NumPy and torch with the run's seed."""
        seed_everything(self.config.seed, self.config.torch_deterministic)

    def log(self, metrics: Metrics, step: int) -> dict[str, float]:
        """Write scalars to every sink; tensors are read here, once, and returned as numbers."""
        self._began = True
        if not self._logs.opened:
            self._open_logs()
        values = self._logs.write(metrics, step)
        self._status.beat(step)
        return values

    def status(self, **fields: Any) -> None:
        """Update status.json: `phase`, `success`, `best_success`, or any other number that a monitor should show."""
        self._status.update(**fields)
        score = HEADLINES[self._status["headline"]]
        self._progress.show(phase=self._status["phase"], **{score: self._status[score]})

    def progress(self, step: int, **postfix: Any) -> None:
        """Move the bar (or print a line, every few seconds) and refresh speed and time left in status.json."""
        self._began = True
        self._progress.update(step, postfix)
        self._status.beat(step, sps=self._progress.speed, eta=self._progress.eta)

    def alarm(self, message: str) -> None:
        """Warn once per distinct message; alarms stay visible in status.json."""
        if message in self.alarms:
            return
        self.alarms.append(message)
        self.say(f"warning: {message}")
        self._status.update(alarms=self.alarms)

    def say(self, line: str) -> None:
        """Print a line above the progress bar and keep it in train.log."""
        self._progress.print(line)

    def rewind(self, step: int) -> None:
        """After a resume from `step`, before the first `log`: forget what was logged beyond it, time from here."""
        rewind_jsonl(self.dir / "metrics.jsonl", step)
        self._purge_step = step + 1
        self._progress.start(step)
        self._status.update(step=step)

    def write_failed(self, what: str, error: OSError) -> None:
        """Count and show a write that the disk refused; training goes on."""
        self._status.count_failure()
        reason = f"{error.strerror}): free space or fix permissions" if error.strerror else f"{error})"
        self.alarm(f"{what} could not be written ({reason}")

    def _open_logs(self) -> None:
        config, description = self.config, self._description
        self._logs.open(self.dir / "metrics.jsonl")
        self._logs.track("TensorBoard", lambda: TensorBoardSink(self.dir, self._purge_step))
        if config.track:
            project, entity = config.wandb_project_name, config.wandb_entity
            flags, run_id, mode = description["flags"], description["tracker_id"], self._wandb_mode
            self._logs.track("wandb", lambda: WandbSink(self.dir, project, entity, flags, run_id, mode=mode))

    def _write_text(self, line: str) -> None:
        self._text.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def described(config: RunConfig, path: Path, full_config: Any) -> tuple[RunDir, dict[str, Any]]:
    """Take the directory and write what describes the run; UserError as `Run.open` has it."""
    folder = RunDir.take(path, config.resume, config.overwrite)
    try:
        description = describe_run(full_config, config.seed, str(pick_device(config.cuda).type))
        if config.resume is not None:
            description |= kept_from(folder.path, description, defaults_of(full_config), config.allow_changes)
        write_config(folder.path, description)
    except BaseException:
        folder.release(remove=config.resume is None)
        raise
    distributed.remember(str(folder.path))
    return folder, description


def kept_from(
    run_dir: Path, description: dict[str, Any], defaults: dict[str, Any], allow_changes: bool
) -> dict[str, Any]:
    """What a resumed run keeps of its first description; UserError with a table where it would be another run."""
    before = read_config(run_dir)
    if not allow_changes:
        refuse(run_dir, changes(before, description, defaults), "undo these changes, or resume it with --allow_changes")
    return {"tracker_id": before.get("tracker_id", description["tracker_id"])}


class Follower(Run):
    """What all processes but the first have of a run: they train along and leave its files alone."""

    def __init__(self, config: RunConfig, path: Path):
        self.config = config
        self.dir = Path(config.resume) if config.resume else path
        self.resumed = config.resume is not None
        self.device = pick_device(config.cuda)
        self.alarms = []

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            distributed.leave()

    def log(self, metrics: Metrics, step: int) -> dict[str, float]:
        """The metrics as numbers, which go nowhere."""
        return to_host(metrics)

    def status(self, **fields: Any) -> None:
        """Nothing: the first process writes status.json."""

    def progress(self, step: int, **postfix: Any) -> None:
        """Nothing: the first process shows how far the run is."""

    def alarm(self, message: str) -> None:
        """Nothing: the first process tells of what is wrong with the run."""

    def say(self, line: str) -> None:
        """Nothing: the first process prints it."""

    def rewind(self, step: int) -> None:
        """Nothing: there are no metrics here to take back."""

    def write_failed(self, what: str, error: OSError) -> None:
        """Nothing: only the first process writes."""


def continued(config: RunConfig, path: Path) -> RunConfig:
    """Where torchrun starts all processes again, they go on in their directory, from its checkpoint if it has one.

    A directory that was there before this job is not theirs.
    """
    own = Path(config.resume) if config.resume else path
    if not distributed.restarts() or not distributed.remembers(str(own)):
        return config
    if states(own):
        return replace(config, resume=str(own))
    return replace(config, resume=None, overwrite=True)


def outcome(error: BaseException | None) -> tuple[str, str | None]:
    """How a run ended, and its error in a line."""
    if error is None:
        return "done", None
    if isinstance(error, Interrupted):
        return "killed", f"stopped by {error.signal}"
    if isinstance(error, KeyboardInterrupt):
        return "killed", "interrupted"
    if isinstance(error, SystemExit):
        if not error.code:
            return "done", None
        killed = isinstance(error.code, int) and error.code > 128
        return ("killed" if killed else "failed"), f"exit code {error.code}"
    lines = str(error).strip().splitlines()
    return "failed", f"{type(error).__name__}: {lines[-1] if lines else ''}"
