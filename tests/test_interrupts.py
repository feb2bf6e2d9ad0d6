"""Signals: which are noted, and what a lost terminal or a full disk behind the output does to a run."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from reinflow.runtime import interrupts
from reinflow.runtime.interrupts import EXIT_CODES, Interrupted
from tests.faults.runs import prepared, status
from tests.faults.strikes import Strike
from tests.small import flags, run_stage
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("interrupts"))


@pytest.mark.parametrize("number", EXIT_CODES)
def test_a_noted_signal_ends_the_run_and_an_ignored_one_stays_ignored_as_nohup_asks_for(number):
    for handler, ends in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
        before = signal.signal(number, handler)
        try:
            with interrupts.listening(last_words=lambda: None), interrupts.deferred():
                os.kill(os.getpid(), number)
                if ends:
                    with pytest.raises(Interrupted) as ended:
                        interrupts.check()
                    assert ended.value.code == EXIT_CODES[number]
                else:
                    interrupts.check()
            assert signal.getsignal(number) is handler
        finally:
            signal.signal(number, before)


def test_a_run_goes_on_when_the_disk_behind_its_output_is_full(folder, monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        run_stage(1, folder, "full output", quiet=False)
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # or closing it raises
    assert status(folder / "runs" / "full output")["state"] == "done"
    assert "12/12 iterations" in (folder / "runs" / "full output" / "train.log").read_text()


@pytest.mark.parametrize("controlling", [True, False])
def test_a_terminal_that_is_closed_stops_the_runs_that_it_controls_and_no_others(folder, controlling):
    name = f"controlled {controlling}"
    ours, theirs = pty.openpty()

    def own_session() -> None:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup themselves
        if controlling:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    in_training = Strike(signal.SIGSTOP, str(folder / f"{name}.struck"), checks=20)  # of 54, in the second iteration
    command = in_training.command(ROOT / "train_online_finetune.py", *flags(3, folder, name))
    with subprocess.Popen(
        [sys.executable, *command], stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=own_session,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""},
    ) as process:  # fmt: skip
        os.close(theirs)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        os.close(ours)
        process.send_signal(signal.SIGCONT)
        code = process.wait(HANGS)
    run = folder / "runs" / name
    assert (code, status(run)["state"]) == ((129, "killed") if controlling else (0, "done"))
    assert json.loads((run / "checkpoints/latest/state.json").read_text())["step"] > 0
