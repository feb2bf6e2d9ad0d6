"""Runs of earlier versions, kept as they were written: they load, mean what they meant, and go on.

`old/runs_COMMIT.tar.xz` holds `demos.h5` and the runs `start`, `weighted` and `tuned` that `tests/small.py` made there.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from reinflow.run.compatibility import source_digest
from reinflow.run.status import read_status
from reinflow.runtime.files import SOURCES
from reinflow.storage.checkpoint import load_policy
from tests.small import SCRIPTS, run_stage

ARCHIVES = sorted((Path(__file__).parent / "old").glob("runs_*.tar.xz"))
RUNS = {1: "start", 2: "weighted", 3: "tuned"}


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs of one earlier version, in which the test stands, as their relative paths ask."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_old_runs():
    assert ARCHIVES


def test_old_checkpoints_keep_their_parts_and_start_their_chains_at_random(old: Path):
    for stage, name in RUNS.items():
        policy, checkpoint = load_policy(Path("runs") / name, "cpu")
        assert list(checkpoint.parts) == ([] if stage == 1 else ["critic"])
        assert policy.spec.initial_noise_scale == 1.0


@pytest.mark.parametrize(("stage", "total"), [(1, ("--total_iters", "16")), (3, ("--total_timesteps", "320"))])
def test_old_runs_go_on(old: Path, stage: int, total: tuple[str, str]):
    run = Path("runs") / RUNS[stage]
    before = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    run_stage(stage, old, RUNS[stage], "--resume", str(run), "--allow_changes", *total)
    after = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert read_status(run / "status.json")["state"] == "done"
    assert after[: len(before)] == before
    assert after[-1]["step"] == int(total[1]) > before[-1]["step"]


def test_the_next_stage_starts_from_old_checkpoints(old: Path):
    for stage in (2, 3):
        run_stage(stage, Path(), "next", *(() if stage == 3 else ("--total_iters", "4")))
        assert read_status(Path("runs/next/status.json"))["state"] == "done", SCRIPTS[stage]
        Path("runs/next").rename(f"runs/next{stage}")


def test_a_run_notes_the_code_that_made_it():
    assert source_digest() != hashlib.sha256().hexdigest()[:16]  # of no file at all
    assert (SOURCES / "nets" / "mlp.py").is_file()
    assert (SOURCES / "reinflow" / "cli.py").is_file()
