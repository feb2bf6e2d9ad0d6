"""The scripted experts in ManiSkill, and what collect_demos.py records of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reinflow.data.demos import load_demos
from reinflow.envs import EnvConfig
from reinflow.envs.maniskill import make
from reinflow.errors import UserError
from reinflow.recording.collect import attempts, collect, measure
from reinflow.recording.experts import EXPERTS, make_expert

ROOT = Path(__file__).resolve().parents[2]
LEAST = {"PickCube-v1": 15, "PushCube-v1": 15, "PullCube-v1": 15, "StackCube-v1": 13, "LiftPegUpright-v1": 12}
"""successes of 16 attempts; of 100 they reach 100, 100, 100, 99 and 93"""


def batched_env(env_id: str, num_envs: int, backend: str = "physx_cpu_batched"):
    torch.set_num_threads(1)
    return make(EnvConfig(env_id).completed(), num_envs, backend)


@pytest.mark.parametrize("env_id", EXPERTS)
def test_the_expert_solves_its_task_within_the_time_limit(env_id):
    env = batched_env(env_id, 16)
    tally = measure(attempts(env, env_id, seed=0, max_episode_steps=50, hold_steps=0), 16)
    env.close()
    assert tally.successes >= LEAST[env_id]


def test_an_expert_recovers_from_action_noise():
    env = batched_env("PickCube-v1", 16)
    episodes = list(collected(env, 16, action_noise=0.2))
    env.close()
    assert sum(episode.success_once for episode in episodes) >= 14
    assert all(episode.data["actions"].abs().max() <= 1 for episode in episodes)


def collected(env, num: int, env_id: str = "PickCube-v1", **options) -> list:
    settings = {"seed": 0, "max_episode_steps": 50, "hold_steps": 2} | options
    kept: list = []
    collect(attempts(env, env_id, **settings), num, only_success=False, keep=kept.append)
    return kept


def leaves(tree, place: str = "") -> dict[str, torch.Tensor]:
    if not isinstance(tree, dict):
        return {place: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in leaves(value, f"{place}/{key}").items()}


@pytest.mark.parametrize("env_id", EXPERTS)
def test_a_demonstration_depends_on_its_seed_alone(env_id):
    """Whatever number of envs ran beside it, and whatever its env did before."""
    sets = []
    for num_envs in (7, 3, 1):
        env = batched_env(env_id, num_envs)
        sets.append(collected(env, 7, env_id, action_noise=0.1))
        env.close()
    for one, *others in zip(*sets, strict=True):
        for other in others:
            assert (one.seed, one.success) == (other.seed, other.success)
            for name, values in leaves(one.data).items():
                assert torch.equal(values, leaves(other.data)[name]), f"{name} of seed {one.seed}"


def test_a_stock_env_replays_a_demonstration_from_its_seed():
    env, stock = batched_env("PickCube-v1", 3), batched_env("PickCube-v1", 1, "physx_cpu")
    episode = collected(env, 3)[2]
    stock.reset(seed=episode.seed)
    for time, action in enumerate(episode.data["actions"]):
        obs, reward, *_ = stock.step(action[None])
        assert torch.equal(obs[0], episode.data["obs"][time + 1])
        assert torch.equal(reward[0], episode.data["rewards"][time])
    env.close()
    stock.close()


def test_an_episode_ends_some_steps_after_its_first_success():
    env = batched_env("PickCube-v1", 2)
    for episode in collected(env, 2, hold_steps=2):
        success = episode.data["success"]
        assert len(success) == int(success.int().argmax()) + 1 + 2
        assert len(episode.data["obs"]) == len(success) + 1
        assert len(episode.data["env_states"]["actors"]["cube"]) == len(success) + 1
    env.close()


def test_a_task_without_expert_is_refused():
    with pytest.raises(UserError, match="--source motionplanning"):
        make_expert("PegInsertionSide-v1", 1)


def collect_demos(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "collect_demos.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_records_demonstrations_that_load(tmp_path):
    path = tmp_path / "demos.h5"
    done = collect_demos("--env_id", "PickCube-v1", "--num_demos", "4", "--seed", "7", "--output", str(path))
    assert done.returncode == 0, done.stderr
    assert "attempts succeeded" in done.stdout
    demos = load_demos(path, env_id="PickCube-v1", control_mode="pd_ee_delta_pose", need_rewards=True)
    assert len(demos.trajectories) == 4
    assert all(trajectory.success[-1] for trajectory in demos.trajectories)
    assert demos.trajectories[0].obs.shape[1] == 42
    info = json.loads(path.with_suffix(".json").read_text())
    assert info["env_info"]["env_kwargs"]["sim_backend"] == "physx_cpu"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demos.h5", "demos.json"]
    again = collect_demos("--num_demos", "4", "--output", str(path))
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ("--env_id", "Nope-v1"),
        ("--control_mode", "pd_joint_pos"),
        ("--num_demos", "0"),
        ("--source", "motionplanning", "--seed", "3"),
    ],
    ids=" ".join,
)
def test_wrong_flags_end_in_one_sentence(tmp_path, flags):
    done = collect_demos(*flags, "--record_dir", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
