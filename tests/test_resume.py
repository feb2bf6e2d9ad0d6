"""A run that was stopped and resumed is the run that was never stopped, to the bit: all stages, on the toy.

Runs are driven in this process; a signal comes at a random call of `interrupts.check`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import train_shortcut_flow
from reinflow.cli import parse
from reinflow.envs.toy import ToyEnv
from reinflow.errors import UserError
from reinflow.runtime import interrupts
from reinflow.runtime.interrupts import Interrupted
from reinflow.runtime.trees import copied, split
from reinflow.storage.checkpoint import load_checkpoint
from reinflow.storage.names import MODEL
from reinflow.storage.resumable import FILES, MANIFEST, latest_training, manifest, save_training, states
from reinflow.storage.sealed import seal, unseal
from tests.small import STAGES, demo_file, run_stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations and a checkpoint of Stage 1 that the other stages start from."""
    folder = tmp_path_factory.mktemp("resume")
    demo_file(folder)
    run_stage(1, folder, "start")
    return folder


def final(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Every tensor of a run's last state: weights, moments, averages, env states and random states."""
    _, tensors = split(latest_training(folder / "runs" / name).training)
    return tensors


def assert_equal(folder: Path, first: str, second: str) -> None:
    mine, theirs = final(folder, first), final(folder, second)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    best = [(folder / "runs" / name / "best_model.safetensors").read_bytes() for name in (first, second)]
    assert best[0] == best[1]


def stop_at(count: int, number: int = signal.SIGTERM) -> Callable[[], None]:
    """A `check` that is hit by a signal at its `count`-th call."""
    check, calls = interrupts.check, 0

    def counted() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), number)
        check()

    return counted


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(folder, monkeypatch, stage):
    whole = f"whole{stage}"
    run_stage(stage, folder, whole)
    for count in (2, 9, 21):
        name = f"stopped{stage}-{count}"
        monkeypatch.setattr(interrupts, "check", stop_at(count))
        with pytest.raises(Interrupted) as stopped:
            run_stage(stage, folder, name)
        assert stopped.value.code == 143
        monkeypatch.undo()
        run_stage(stage, folder, name, "--resume", str(folder / "runs" / name))
        assert_equal(folder, whole, name)


def test_a_killed_run_goes_on_from_its_last_state(folder):
    class Kill(BaseException):
        """What ends a run without letting it save."""

    def killed_at(count: int) -> Callable[[], None]:
        calls = 0

        def counted() -> None:
            nonlocal calls
            calls += 1
            if calls == count:
                raise Kill

        return counted

    run_stage(3, folder, "whole")
    for count in (12, 25):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Kill):
            patch.setattr(interrupts, "check", killed_at(count))
            run_stage(3, folder, f"killed{count}")
        run_stage(3, folder, f"killed{count}", "--resume", str(folder / "runs" / f"killed{count}"))
        assert_equal(folder, "whole", f"killed{count}")


@pytest.mark.parametrize("stage", [1, 3])
def test_metrics_of_a_resumed_run_have_every_step_once(folder, monkeypatch, stage):
    name = f"logged{stage}"
    run_stage(stage, folder, f"{name}-whole")
    monkeypatch.setattr(interrupts, "check", stop_at(17))
    with pytest.raises(Interrupted):
        run_stage(stage, folder, name)
    monkeypatch.undo()
    run_stage(stage, folder, name, "--resume", str(folder / "runs" / name))
    assert logged(folder / "runs" / name) == logged(folder / "runs" / f"{name}-whole")


def logged(run: Path) -> list[Any]:
    """Every line without what the clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "time" not in key and "SPS" not in key} for line in lines]


def test_a_longer_run_may_go_on_and_another_one_may_not(folder):
    run_stage(3, folder, "longer")
    run = folder / "runs" / "longer"
    steps = latest_training(run).training["counters"]["env_steps"]
    run_stage(3, folder, "longer", "--resume", str(run), "--total_timesteps", str(steps + 1))
    assert latest_training(run).training["counters"]["env_steps"] > steps
    newest = states(run)[0].name
    with pytest.raises(UserError) as refused:
        run_stage(3, folder, "longer", "--resume", str(run), "--lr", "0.5", "--gamma", "0.5")
    rows = [line.split() for line in str(refused.value).splitlines()[1:]]
    assert rows[0] == ["in", "the", "run", "now"]
    assert [row[0] for row in rows[1:]] == ["--gamma", "--lr"]
    assert states(run)[0].name == newest


def test_other_code_is_refused_unless_that_is_wanted(folder, monkeypatch):
    run_stage(1, folder, "code")
    monkeypatch.setattr("reinflow.run.directory.source_digest", lambda: "another")
    resume = ["--resume", str(folder / "runs" / "code")]
    with pytest.raises(UserError, match=r"source .*another"):
        run_stage(1, folder, "code", *resume)
    run_stage(1, folder, "code", *resume, "--allow_changes")


CHANGES = {
    "observation and action dims": ["--env_id", "SyntheticChunk-v0"],
    "K": ["--num_inference_steps", "3"],
    "env": ["--max_episode_steps", "11"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_of_another_policy_or_task_is_refused_with_a_table_also_when_changes_are_allowed(folder, change):
    if not (folder / "runs" / "state").exists():
        run_stage(3, folder, "state")
    resume = ["--resume", str(folder / "runs" / "state"), "--allow_changes"]
    with pytest.raises(UserError, match=r"another policy or task|contradicts the checkpoint"):
        run_stage(3, folder, "state", *resume, *CHANGES[change])


def parts(training: dict[str, Any]) -> list[str]:
    return [*training, *(f"randomness/0/{name}" for name in training["randomness"][0])]


@pytest.mark.parametrize("stage", STAGES)
def test_a_state_that_lacks_a_part_is_refused_in_a_sentence(folder, stage):
    name = f"parts{stage}"
    run_stage(stage, folder, name)
    run = folder / "runs" / name
    whole = latest_training(run)
    for path in states(run):
        shutil.rmtree(path)
    for part in parts(whole.training):
        training = copied(whole.training)
        *above, last = part.split("/")
        (training["randomness"][0] if above else training).pop(last)
        path = save_training(run, 1, replace(whole, training=training))
        with pytest.raises(UserError, match=f"another version or configuration .*{last}"):
            run_stage(stage, folder, name, "--resume", str(run))
        shutil.rmtree(path)


def test_the_trackers_run_goes_on_under_its_id(folder):
    run_stage(1, folder, "tracked")
    run = folder / "runs" / "tracked"
    before = json.loads((run / "config.json").read_text())["tracker_id"]
    run_stage(1, folder, "tracked", "--resume", str(run))
    assert json.loads((run / "config.json").read_text())["tracker_id"] == before


def test_a_run_whose_disk_is_full_goes_on_and_says_so(folder, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reinflow.storage.resumable.write_durably", full)
    run_stage(1, folder, "full")
    status = json.loads((folder / "runs" / "full" / "status.json").read_text())
    assert status["state"] == "done"
    assert status["write_failures"] >= 1
    assert any("No space left" in alarm for alarm in status["alarms"])


def test_parsing_takes_the_saved_flags(folder):
    config = parse(train_shortcut_flow.Config, ["--resume", str(folder / "runs" / "start")])
    assert config.offline.total_iters == 12


def test_v_of_large_returns_goes_on_in_its_unit(folder, monkeypatch):
    # 24 steps of 3e4 * (0 to .5) are returns of some 1e5
    step = ToyEnv.step

    def rewarded(self, action, render=True):
        result = step(self, action, render)
        return replace(result, reward=3e4 * result.reward)

    monkeypatch.setattr(ToyEnv, "step", rewarded)
    run_stage(3, folder, "large")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(interrupts, "check", stop_at(21))
        run_stage(3, folder, "large-stopped")
    run_stage(3, folder, "large-stopped", "--resume", str(folder / "runs" / "large-stopped"))
    assert_equal(folder, "large", "large-stopped")
    state = latest_training(folder / "runs" / "large")
    scale = state.parts["critic"]["scale"]
    assert 3e4 < scale < 3e5
    assert scale == state.training["learner"]["agent"]["critic.scale"]


def test_a_state_from_before_updates_of_the_policy_were_counted_goes_on(folder):
    run_stage(3, folder, "older")
    run = folder / "runs" / "older"
    state = latest_training(run)
    del state.training["counters"]["policy_updates"]
    save_training(run, state.training["step"], state)
    run_stage(3, folder, "older", "--resume", str(run), "--total_timesteps", "400")
    assert latest_training(run).training["counters"]["policy_updates"] > 0


def as_before_the_trainer(run: Path) -> None:
    """Rewrite the newest state of Stage 3 as it was when the agent lay beside its optimisers, and V was no part."""
    state = latest_training(run)
    learner = dict(state.training["learner"])
    state.training |= {"agent": learner.pop("agent"), "learner": learner}
    path = save_training(run, state.training["step"], state)
    tensors, description = unseal((path / MODEL).read_bytes())
    description = {name: value for name, value in description.items() if name not in ("parts", "sha256")}
    (path / MODEL).write_bytes(seal(tensors, description | {"has_critic": True}))
    contents = {name: (path / name).read_bytes() for name in FILES}
    (path / MANIFEST).write_bytes(manifest(contents))


def test_a_state_from_before_all_loops_had_one_trainer_goes_on_to_the_bit(folder):
    for name in ("of today", "of then"):
        run_stage(3, folder, name)
        if name == "of then":
            as_before_the_trainer(folder / "runs" / name)
        run_stage(3, folder, name, "--resume", str(folder / "runs" / name), "--total_timesteps", "480")
    assert_equal(folder, "of today", "of then")


def test_an_older_run_goes_on_and_its_best_policy_gets_the_name_of_today(folder):
    run = folder / "runs" / "named"
    run_stage(1, folder, "named")
    (run / "best_model.safetensors").rename(run / "best_model.pt")
    description = json.loads((run / "config.json").read_text())
    del description["flags"]["keep_every"]  # which it did not have either
    (run / "config.json").write_text(json.dumps(description))
    run_stage(2, folder, "from it", "--pretrained_path", str(run / "best_model.safetensors"))
    run_stage(1, folder, "named", "--resume", str(run), "--total_iters", "13")
    assert [path.name for path in run.glob("best_model*")] == ["best_model.safetensors"]


def test_a_run_keeps_the_policy_of_every_second_evaluation_and_the_last_one_and_draws_their_curve(folder, capsys):
    # evaluations after 4, 8 and 12 iterations: the second one, and the last
    run_stage(1, folder, "kept", "--keep_every", "2")
    kept = sorted((folder / "runs" / "kept" / "kept").iterdir())
    assert [path.name for path in kept] == [f"step_{step:012d}.safetensors" for step in (8, 12)]
    flags = ["--num_eval_envs", "2", "--num_eval_episodes", "2", "--no-cuda", "--output_dir", str(folder / "curve")]
    evaluate.main(parse(evaluate.Config, ["--checkpoint", *map(str, kept), *flags]))
    rows = json.loads((folder / "curve" / "curve.json").read_text())["results"]
    assert [(row["step"], row["episodes"]) for row in rows] == [(8, 2), (12, 2)]
    run_stage(3, folder, "kept3", "--keep_every", "9")
    pretrained, _ = sorted((folder / "runs" / "kept3" / "kept").iterdir())
    assert load_checkpoint(pretrained).meta["step"] == 0
    assert (folder / "curve" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("success_once") == 2
