from __future__ import annotations

import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from reinflow.cli import Flat, parse
from reinflow.errors import UserError
from reinflow.run import wandb_mode
from reinflow.run.config import RunConfig
from reinflow.run.metrics import JsonlSink, MetricsLog, rewind_jsonl, to_host
from reinflow.run.progress import clock
from reinflow.run.run import Run, outcome
from tests.waiting import HANGS


@dataclass(frozen=True)
class Script:
    """A script's config."""

    run: Flat[RunConfig] = field(default_factory=RunConfig)
    dims: tuple[int, ...] = (1, 2)


def open_run(folder: Path, **fields) -> Run:
    config = Script(run=RunConfig(runs_dir=str(folder), cuda=False, **fields))
    return Run.open(config.run, name="toy-seed0", full_config=config, total=100, unit="iterations")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_run_leaves_config_status_metrics_and_log(tmp_path):
    with open_run(tmp_path) as run:
        run.status(phase="ppo")
        run.log({"losses/total": torch.tensor(0.5), "charts/SPS": 10}, step=50)
        run.status(success=0.25)
        run.status(success=0.75)
        run.status(success=0.5)
        run.progress(100, loss=torch.tensor(0.5))
    folder = tmp_path / "toy-seed0"
    config = read(folder / "config.json")
    assert config["config"]["run"]["seed"] == 0
    assert config["flags"]["dims"] == [1, 2]
    assert {"torch", "python", "numpy"} <= config["versions"].keys()
    status = read(folder / "status.json")
    assert (status["state"], status["step"], status["total"], status["phase"]) == ("done", 100, 100, "ppo")
    assert (status["success"], status["best_success"]) == (0.5, 0.75)
    assert status["success_history"] == [[50, 0.25], [50, 0.75], [50, 0.5]]
    assert (status["headline"], status["return"], status["best_return"]) == ("success_once", None, None)
    assert status["heartbeat"] >= status["started"]
    line = json.loads((folder / "metrics.jsonl").read_text())
    assert (line["step"], line["losses/total"], line["charts/SPS"]) == (50, 0.5, 10)
    assert "100/100 iterations (100%)" in (folder / "train.log").read_text()
    assert list(folder.glob("events.*"))
    assert (folder / "checkpoints").is_dir()
    assert not list(folder.glob(".*partial"))


def test_an_existing_directory_is_refused_with_three_ways_out(tmp_path):
    with open_run(tmp_path) as run:
        run.log({"a": 1.0}, step=1)
    before = (tmp_path / "toy-seed0" / "metrics.jsonl").read_text()
    with pytest.raises(UserError) as caught:
        open_run(tmp_path)
    for word in ("--resume", "--exp_name", "--overwrite"):
        assert word in str(caught.value)
    assert (tmp_path / "toy-seed0" / "metrics.jsonl").read_text() == before


def test_overwrite_replaces_runs_and_nothing_else(tmp_path):
    with open_run(tmp_path) as run:
        run.log({"a": 1.0}, step=1)
    with open_run(tmp_path, overwrite=True) as run:
        assert not (run.dir / "metrics.jsonl").exists()
        run.log({"a": 1.0}, step=1)
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter1.txt").write_text("precious")
    with pytest.raises(UserError, match="not a run of ours"):
        open_run(tmp_path, overwrite=True, exp_name="thesis")
    assert (mine / "chapter1.txt").read_text() == "precious"


def test_a_mistake_before_the_first_step_leaves_no_directory(tmp_path):
    with pytest.raises(UserError), open_run(tmp_path):
        raise UserError("no demos at x: collect some")
    assert not (tmp_path / "toy-seed0").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_is_full_at_the_start_leaves_no_directory(tmp_path, monkeypatch, overwrite):
    if overwrite:
        with open_run(tmp_path) as run:
            run.log({"a": 1.0}, step=1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "config.json")

    monkeypatch.setattr("reinflow.run.directory.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        open_run(tmp_path, overwrite=overwrite)
    assert not (tmp_path / "toy-seed0").exists()
    monkeypatch.undo()
    open_run(tmp_path)


def test_a_folder_that_can_not_be_locked_says_so_and_not_that_it_is_in_use(tmp_path, monkeypatch):
    def unlockable(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", unlockable)
    with pytest.raises(UserError, match="can't be locked .No locks available"):
        open_run(tmp_path)


def test_a_damaged_line_of_metrics_is_dropped_by_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\x00\n17\n{"stop": 1}\n{"step": "x"}\n{"step": 2}\n')
    rewind_jsonl(path, 5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_failure_is_in_the_status_and_its_traceback_in_the_log(tmp_path):
    def train() -> None:
        with open_run(tmp_path) as run:
            run.log({"a": 1.0}, step=1)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        train()
    status = read(tmp_path / "toy-seed0" / "status.json")
    assert status["state"] == "failed"
    assert status["error"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in (tmp_path / "toy-seed0" / "train.log").read_text()


def test_outcomes():
    assert outcome(None) == ("done", None)
    assert outcome(SystemExit(0))[0] == "done"
    assert outcome(SystemExit(2))[0] == "failed"
    assert outcome(SystemExit(143))[0] == "killed"
    assert outcome(KeyboardInterrupt())[0] == "killed"


TRAINER = """
import signal, sys
from reinflow.cli import run_script
from tests.test_run import Script
from reinflow.run.run import Run
def main(config):
    with Run.open(config.run, name="toy", full_config=config, total=10, unit="iterations") as run:
        run.log({"a": 1.0}, step=1)
        print("ready", flush=True)
        signal.pause()
run_script(main, Script, argv=sys.argv[1:])
"""


def start_trainer(folder: Path) -> subprocess.Popen:
    root = Path(__file__).resolve().parent.parent
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, "--runs_dir", str(folder), "--no-cuda"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    while "ready" not in (line := trainer.stdout.readline()):
        assert line, trainer.stderr.read()
    return trainer


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 85)])
def test_a_killed_run_says_killed_and_a_second_trainer_is_refused(tmp_path, number, code):
    trainer = start_trainer(tmp_path)
    try:
        assert read(tmp_path / "toy" / "status.json")["state"] == "running"
        with pytest.raises(UserError, match="another process"):
            open_run(tmp_path, exp_name="toy", overwrite=True)
        assert (tmp_path / "toy" / "metrics.jsonl").exists()
    finally:
        trainer.send_signal(number)
        _, errors = trainer.communicate(timeout=HANGS)
    assert trainer.returncode == code
    assert "Traceback" not in errors
    assert read(tmp_path / "toy" / "status.json")["state"] == "killed"


def test_resume_takes_the_runs_own_flags_and_forgets_later_lines(tmp_path):
    config = Script(run=RunConfig(runs_dir=str(tmp_path), cuda=False, seed=7), dims=(5, 6))
    with Run.open(config.run, name="toy", full_config=config, total=100, unit="iterations") as run:
        for step in (10, 20, 30):
            run.log({"a": float(step)}, step=step)
    with (tmp_path / "toy" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "a"')  # a kill in the middle of a line
    resumed = parse(Script, ["--resume", str(tmp_path / "toy"), "--num_threads", "1"])
    assert (resumed.dims, resumed.run.seed, resumed.run.num_threads) == ((5, 6), 7, 1)
    with Run.open(resumed.run, name="toy", full_config=resumed, total=100, unit="iterations") as run:
        assert run.resumed
        run.rewind(20)
        run.log({"a": 21.0}, step=21)
    lines = (tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 21]
    assert len(read(tmp_path / "toy" / "config.json")["earlier"]) == 1


def test_resume_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run"):
        parse(Script, ["--resume", str(tmp_path)])
    with pytest.raises(UserError, match="not a run"):
        open_run(tmp_path, resume=str(tmp_path))


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    with open_run(tmp_path) as run:
        drawn = []
        for _ in range(2):
            run.seed_everything()
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
        run.log({"a": 1.0}, step=1)
    assert drawn[0] == drawn[1]


def test_tensors_reach_the_host_exactly():
    # 16,777,217 = 2**24 + 1 is no float32
    metrics = {"a": torch.tensor(16_777_217), "b": 0.5, "c": torch.tensor([0.25], requires_grad=True)}
    assert to_host(metrics) == {"a": 16_777_217.0, "b": 0.5, "c": 0.25}


SINK: dict[str, Any] = {"log": lambda metrics, step: None, "finish": lambda: None}


class Recorder:
    """A tracker that keeps what it gets, and may stall or raise first."""

    name = "recorder"

    def __init__(self, trouble=lambda: None):
        self.trouble, self.steps = trouble, []

    def write(self, metrics, step):
        self.trouble()
        self.steps.append(step)

    def close(self): ...


def lost_server() -> None:
    raise OSError("server lost")


def test_a_tracker_that_fails_warns_once_and_everything_else_goes_on(tmp_path):
    warnings, good = [], Recorder()
    log = MetricsLog(warnings.append, failed=lambda what, error: None)
    log.open(tmp_path / "metrics.jsonl")
    log.track("wandb", lambda: Recorder(lost_server))
    log.track("good", lambda: good)
    for step in (1, 2, 3):
        log.write({"a": 1.0}, step)
    log.close()
    assert good.steps == [1, 2, 3]
    assert warnings == ["the wandb log stopped: OSError: server lost"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_stalls_neither_blocks_nor_loses_a_line_of_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr("reinflow.run.trackers.QUEUED", 2)
    monkeypatch.setattr("reinflow.run.trackers.CLOSING_SECONDS", 0.1)
    warnings, released, came_back = [], threading.Event(), []
    log = MetricsLog(warnings.append, failed=lambda what, error: None)
    log.open(tmp_path / "metrics.jsonl")
    log.track("wandb", lambda: Recorder(lambda: came_back.append(released.wait(HANGS))))
    for step in range(100):
        log.write({"a": 1.0}, step)
    log.close()
    assert not came_back
    released.set()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 100
    assert "metrics.jsonl has them all" in warnings[0]
    assert "was left behind" in warnings[1]


def test_metrics_wait_for_a_disk_that_is_full(tmp_path, monkeypatch):
    path, write = tmp_path / "metrics.jsonl", os.write
    sink = JsonlSink(path)
    sink.write({"a": 1.0}, 1)

    def half_full(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:5])

    monkeypatch.setattr(os, "write", half_full)
    for step in (2, 3):
        with pytest.raises(OSError, match="No space left"):
            sink.write({"a": 1.0}, step)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1]
    monkeypatch.undo()
    sink.write({"a": 1.0}, 4)
    sink.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_numbers_that_are_not_finite_raise_an_alarm_and_stay_json(tmp_path):
    with open_run(tmp_path) as run:
        run.log({"losses/total": torch.tensor(float("nan"))}, step=1)
        run.log({"losses/total": float("inf")}, step=2)
    assert run.alarms == ["losses/total is not finite"]
    lines = (tmp_path / "toy-seed0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["losses/total"] for line in lines] == [None, None]


def test_offline_wandb_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with open_run(tmp_path, track=True) as run:
        run.log({"a": 1.0}, step=1)
    assert run.alarms == []
    assert list((tmp_path / "toy-seed0" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize(
    ("server", "key", "trouble"),
    [("silent", "0" * 40, "does not answer"), ("answering", None, "there is no login"), ("answering", "0" * 40, None)],
)
def test_a_run_starts_wandb_offline_with_a_warning_where_it_could_not_log(tmp_path, monkeypatch, server, key, trouble):
    import wandb

    asked = []
    url = "http://127.0.0.1:9"
    settings = SimpleNamespace(mode="online", base_url=url)
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: asked.append(prompt) or key is not None)
    monkeypatch.setattr(wandb, "init", lambda **given: SimpleNamespace(mode=given["mode"], **SINK))
    if server == "answering":
        monkeypatch.setattr(wandb_mode, "answers", lambda asked_for: asked_for == url)
    with open_run(tmp_path, track=True) as run:
        warned = list(run.alarms)  # before anything is logged
        run.log({"a": 1.0}, step=1)
    assert run.alarms == warned
    assert [trouble in warning for warning in warned] == ([True] if trouble else [])
    assert run._wandb_mode == ("offline" if trouble else None)
    assert not any(asked)


def test_a_server_that_refuses_is_there_and_one_that_is_not_is_told_from_it():
    refusing = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # 501 to everything
    thread = threading.Thread(target=refusing.handle_request, daemon=True)
    thread.start()
    assert wandb_mode.answers(f"http://127.0.0.1:{refusing.server_port}")
    thread.join(HANGS)
    refusing.server_close()
    assert not wandb_mode.answers(f"http://127.0.0.1:{refusing.server_port}")
    assert not wandb_mode.answers("no address")


def test_all_trackers_together_are_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr("reinflow.run.trackers.CLOSING_SECONDS", 0.2)
    released = threading.Event()
    log = MetricsLog(lambda line: None, failed=lambda what, error: None)
    log.open(tmp_path / "metrics.jsonl")
    for name in "abcdefghij":
        log.track(name, lambda: Recorder(lambda: released.wait(HANGS)))
    log.write({"a": 1.0}, 1)
    waited = []
    monkeypatch.setattr("reinflow.run.trackers.left", lambda deadline: waited.append(deadline) or 0.0)
    log.close()
    released.set()
    assert len(waited) == 20
    assert len(set(waited)) == 1


def test_clock_by_hand():
    # 3725 s = 1 h + 2 min + 5 s
    assert clock(3725) == "1:02:05"
    assert clock(65) == "1:05"
