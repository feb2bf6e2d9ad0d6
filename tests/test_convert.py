"""Demonstrations converted, recorded from a policy, examined, and compared with a policy's actions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import collect_demos
import evaluate
from reinflow import convert, doctor
from reinflow.cli import parse
from reinflow.data.demos import load_demos
from reinflow.data.examination import advice, examined, still_guessed
from reinflow.data.trajectories import Demos, Trajectory
from reinflow.errors import UserError
from reinflow.recording.writers import WRITERS
from reinflow.training.action_error import action_error, recorded_steps
from reinflow.training.evaluation import evaluate as played
from tests.small import demo_file, run_stage

NAMES = {"maniskill": "out.h5", "d4rl": "out.hdf5", "npz": "out.npz", "minari": "out"}


def converted(*words: object) -> None:
    convert.main(parse(convert.Config, [str(word) for word in words]))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_in_a_format_is_read_back(tmp_path, name):
    source, output = demo_file(tmp_path, episodes=3), tmp_path / NAMES[name]
    converted(source, output)
    before, after = load_demos(source).trajectories, load_demos(output, need_rewards=True).trajectories
    lost = 1 if name == "npz" else 0  # without a last observation the last step of an unfinished episode goes
    for one, two in zip(before, after, strict=True):
        steps = len(one) - lost
        torch.testing.assert_close(two.obs, one.obs[: steps + 1], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(two.actions, one.actions[:steps], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(two.rewards, one.rewards[:steps])
        if name != "maniskill":  # which keeps what was recorded, here nothing
            assert two.truncated.tolist() == [False] * (steps - 1) + [True] and not two.terminated.any()
        assert name not in ("maniskill", "minari") or two.success.equal(one.success)
    with pytest.raises(UserError, match="exists: pass --overwrite"):
        converted(source, output)
    converted(source, output, "--overwrite", "--num_demos", 1)
    assert len(load_demos(output).trajectories) == 1


def test_robosuites_states_become_robomimics_parts_and_come_back(tmp_path):
    obs = torch.arange(4 * 19.0).reshape(4, 19)
    marks = torch.tensor([False, False, True])
    one = Trajectory(obs, torch.ones(3, 7), marks, marks, ~marks & False, marks.float())
    WRITERS["robomimic"](tmp_path / "lift.hdf5", Demos([one], "Lift", ""), False)
    demos = load_demos(tmp_path / "lift.hdf5", need_rewards=True)
    assert demos.env_id == "Lift"
    assert demos.trajectories[0].obs.equal(obs) and demos.trajectories[0].success.equal(marks)
    with pytest.raises(UserError, match="choose another --format"):
        converted(demo_file(tmp_path), tmp_path / "toy.hdf5", "--format", "robomimic")


def test_successes_that_were_not_recorded_are_not_written(tmp_path, capsys):
    converted(demo_file(tmp_path), tmp_path / "without.hdf5")
    converted(tmp_path / "without.hdf5", tmp_path / "without")
    assert not load_demos(tmp_path / "without").marks_success
    assert "never succeed" not in capsys.readouterr().out


def test_a_name_of_no_format_asks_for_one(tmp_path):
    with pytest.raises(UserError, match="pass --format maniskill, d4rl"):
        converted(demo_file(tmp_path), tmp_path / "x.csv")


def slow_demos(control_mode: str = "pd_ee_delta_pose") -> Demos:
    """20 steps of a tenth of the range, a switch, 20 pauses."""
    actions = torch.zeros(40, 3)
    actions[:20, 0], actions[:, 2] = 0.1, 1.0
    actions[19:, 2] = -1.0
    nothing = torch.zeros(40, dtype=torch.bool)
    one = Trajectory(torch.zeros(41, 2), actions, nothing, nothing, nothing)
    return Demos([one, replace(one, success=~nothing)], "PickCube-v1", control_mode, max_episode_steps=30)


def test_the_doctor_measures_what_makes_demonstrations_hard_to_clone():
    demos = slow_demos()
    assert still_guessed(demos) == (0.0, 0.0, None)
    found = examined(demos)
    assert (found.episodes, found.successes, found.length_median) == (2, 1, 40)
    # the gripper switches at step 19 and settles for 8 steps, until 26; the 13 from 27 on are pauses
    assert found.paused == pytest.approx(13 / 40)
    assert found.at_switch == pytest.approx(1 / 40)
    # of the 27 that are none, 20 use a tenth of the range
    assert found.range_used == pytest.approx(0.1)
    # 19 steps of .1, then the switch, with which 8 steps (1 + 7 of standing still) go on, and all pauses join the last:
    # at most two into one 10 + 4 steps, three 7 + 3, four 5 + 2
    assert found.faster == {"2": 14, "3": 10, "4": 7}
    said = " ".join(advice(found, demos.max_episode_steps))
    assert "1 of 2 episodes never succeed" in said and "--speed_up 3, which makes 10 steps" in said
    assert "--drop_pauses" in said and "--max_episode_steps 48" in said
    assert examined(slow_demos("pd_joint_pos")).faster == {}


def test_the_doctor_looks_at_files_instead_of_the_machine(tmp_path, capsys):
    path = demo_file(tmp_path)
    assert doctor.main(["--demo_path", str(path)]) == 0
    assert "range used" in capsys.readouterr().out
    assert doctor.main(["--demo_path", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 6
    assert doctor.main(["--demo_path", str(tmp_path / "none.h5")]) == 2
    assert "there are no demonstrations" in capsys.readouterr().err


def test_conversion_merges_steps_and_says_so(tmp_path, capsys):
    WRITERS["maniskill"](tmp_path / "slow.h5", slow_demos(), False)
    converted(tmp_path / "slow.h5", tmp_path / "fast.h5", "--speed_up", 4, "--drop_pauses")
    assert "2 episodes of 14 steps (from 80)" in capsys.readouterr().out
    with pytest.raises(UserError, match="need a control mode of deltas, not toy"):
        converted(demo_file(tmp_path), tmp_path / "toy.npz", "--speed_up", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of Stage 1 whose last third of the demonstrations is held out."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    demo_file(folder)
    run_stage(1, folder, "clone", "--validation_share", "0.34")
    return folder


def logged(folder: Path, name: str) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line[name] for line in map(json.loads, lines) if name in line]


def test_the_loss_on_held_out_episodes_is_logged_at_every_evaluation_and_changes_nothing_else(folder):
    assert len(logged(folder / "runs" / "clone", "losses/validation")) == 3  # 12 iterations, every 4
    config = json.loads((folder / "runs" / "clone" / "config.json").read_text())["flags"]
    assert config["validation_share"] == 0.34


def test_training_ends_where_the_validation_loss_stays_up(folder, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0, 0.5])
    monkeypatch.setattr("reinflow.training.validation.Validation.loss", lambda self, learner: next(losses))
    more = ["--validation_share", "0.34", "--patience", "2", "--total_iters", "40"]
    run_stage(1, folder, "patient", *more)
    # lowest at the second evaluation, not lower at the third and fourth: 4 evaluations of 4 iterations
    assert logged(folder / "runs" / "patient", "losses/validation") == [3.0, 2.0, 2.5, 2.0]
    assert json.loads((folder / "runs" / "patient" / "status.json").read_text())["step"] == 16
    with pytest.raises(UserError, match="pass --validation_share"):
        run_stage(1, folder, "hasty", "--patience", "2")


def test_an_offline_evaluation_measures_held_out_actions(folder, tmp_path, capsys):
    words = [
        "--checkpoint",
        str(folder / "runs" / "clone"),
        "--offline",
        str(folder / "demos.h5"),
        "--held_out",
        "0.34",
    ]
    words += ["--num_inference_steps", "1", "2", "--output_dir", str(tmp_path), "--no-cuda"]
    evaluate.main(parse(evaluate.Config, words))
    rows = json.loads((tmp_path / "offline.json").read_text())["results"]
    assert [row["num_inference_steps"] for row in rows] == [1, 2]
    assert all(row["episodes"] == 2 and len(row["rmse_per_dim"]) == 2 for row in rows)


class Constant:
    """Always acts (.5, 0), whatever it sees."""

    device = torch.device("cpu")
    spec = type("Spec", (), {"obs_horizon": 2, "pred_horizon": 3, "act_horizon": 2, "executed": slice(1, 3)})
    action_normalizer = type("Normalizer", (), {"scale": torch.tensor([0.5, 1.0])})

    def eval(self) -> None: ...

    def act(self, obs, generator, num_steps):
        return torch.tensor([0.5, 0.0]).expand(len(obs["state"]), 2, 2)


def test_the_action_error_by_hand():
    actions = torch.tensor([[0.5, 0.0], [1.5, 0.0], [0.5, 3.0]])
    nothing = torch.zeros(3, dtype=torch.bool)
    demos = Demos([Trajectory(torch.zeros(4, 1), actions, nothing, nothing, nothing)], "T", "")
    assert recorded_steps(demos, 2).tolist() == [[True, True], [True, True], [True, False]]
    env = type("Env", (), {"still": (0.0, 0.0), "action_dim": 2})
    found = action_error(Constant(), demos, env, 1, seed=0)
    # steps 0 1 | 1 2 | 2 are looked at: the first dimension misses step 1 twice by 1, the second step 2 twice by 3
    np.testing.assert_allclose(found.per_dim, [(2 / 5) ** 0.5, (18 / 5) ** 0.5], rtol=1e-6)
    # in units of the demonstrated range 1 is 2: (2 * 4 + 2 * 9) / (5 * 2)
    assert found.mse == pytest.approx(2.6)


@pytest.mark.parametrize("name", ["maniskill", "npz"])
def test_a_policys_own_episodes_are_recorded(folder, tmp_path, name):
    output = tmp_path / NAMES[name]
    words = ["--checkpoint", str(folder / "runs" / "clone"), "--format", name, "--output", str(output)]
    words += ["--num_demos", "5", "--num_envs", "3", "--no-only_success", "--seed", "7"]
    collect_demos.main(parse(collect_demos.Config, words))
    demos = load_demos(output, need_rewards=True)
    assert len(demos.trajectories) == 5
    if name == "maniskill":
        assert all(len(one) == 24 for one in demos.trajectories)
        # the same seeds evaluated: the sums of rewards are the returns
        from reinflow.envs import EnvConfig, make_env
        from reinflow.storage.checkpoint import load_policy

        policy, saved = load_policy(folder / "runs" / "clone" / "best_model.pt", "cpu")
        env = make_env(EnvConfig(num_workers=0).completed(saved.env_spec), 3, 4, 2, 1.0)
        returns = played(policy, env, episodes=3, seed=7).return_
        torch.testing.assert_close(torch.stack([one.rewards.sum() for one in demos.trajectories[:3]]), returns)
        assert json.loads(output.with_suffix(".json").read_text())["episodes"][4]["episode_seed"] == 11
