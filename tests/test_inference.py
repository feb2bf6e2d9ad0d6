"""`reinflow.load`: a raw observation in, an action out, as the project's own evaluation decides."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

import reinflow
from reinflow.envs import EnvConfig, make_env
from reinflow.envs.toy import ToyEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.errors import UserError
from reinflow.inference import StepwisePolicy
from reinflow.policies import build_policy
from reinflow.policies.base import Policy
from reinflow.policies.spec import PolicyConfig
from reinflow.storage.checkpoint import Checkpoint, save_checkpoint
from reinflow.training.evaluation import evaluate
from reinflow.types import EnvSpec, ImageSpec
from tests.test_evaluation import random_policy

ROOT = Path(__file__).resolve().parents[1]
SEED = 10_000


def saved(path: Path, policy: Policy, task: EnvSpec) -> Path:
    save_checkpoint(path, Checkpoint(policy.spec, task, policy.state_dict()))
    return path


def noisy_policy(task: EnvSpec) -> Policy:
    """Every episode's noise is seen in what it does, and so are the bounds of the task."""
    policy = random_policy(task)
    policy.action_normalizer.scale.fill_(1.5)
    policy.spec = policy.spec.starting_with(1.0)
    return policy


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = ToyEnv(1).spec
    return saved(tmp_path_factory.mktemp("toy") / "best_model.safetensors", noisy_policy(task), task)


def played(policy: StepwisePolicy, seeds: list[int]) -> tuple[Tensor, Tensor]:
    """Returns and successes of one round in the toy, stepped by hand as a user would."""
    env = ToyEnv(len(seeds))
    obs = env.reset(seed=seeds)["state"]
    policy.reset()
    total, success = torch.zeros(len(seeds)), torch.zeros(len(seeds), dtype=torch.bool)
    for _ in range(env.spec.max_episode_steps):
        step = env.step(policy(obs))
        obs, total, success = step.obs["state"], total + step.reward, success | step.success
    return total, success


@pytest.mark.parametrize("act_horizon", [None, 3])
def test_a_users_loop_plays_the_episodes_of_an_evaluation_to_the_bit(toy_file, act_horizon):
    # 3 instead of 4 env steps of every chunk: the next one is wanted before the last is over
    policy = reinflow.load(toy_file, seed=SEED, exact=True, act_horizon=act_horizon)
    executed = act_horizon or 4
    env = ActionChunk(ToyEnv(5), executed, 2, gamma=1.0)
    own = noisy_policy(env.spec)
    own.spec = replace(own.spec, act_horizon=executed)
    expected = evaluate(own, env, episodes=10, seed=SEED)
    rounds = [played(policy, list(range(first, first + 5))) for first in (SEED, SEED + 5)]
    # a chunk's rewards are summed before they are added to those of the chunks before it
    torch.testing.assert_close(torch.cat([total for total, _ in rounds]), expected.return_, rtol=1e-6, atol=0)
    assert torch.equal(torch.cat([success for _, success in rounds]), expected.success_once)
    assert len(set(expected.return_.tolist())) == 10


def test_every_action_is_that_of_the_evaluation_to_the_bit(toy_file, monkeypatch):
    seen: list[Tensor] = []
    env = ActionChunk(ToyEnv(3), 4, 2, gamma=1.0)
    step_chunk = env.step_chunk
    monkeypatch.setattr(env, "step_chunk", lambda actions: seen.append(actions) or step_chunk(actions))
    evaluate(noisy_policy(env.spec), env, episodes=3, seed=SEED)
    inside = torch.cat(seen, dim=1).clamp(-1, 1)
    policy, toy = reinflow.load(toy_file, seed=SEED, exact=True), ToyEnv(3)
    obs = toy.reset(seed=[SEED, SEED + 1, SEED + 2])["state"]
    assert any(actions.abs().max() > 1 for actions in seen)
    for index in range(24):
        action = policy(obs)
        assert torch.equal(action, inside[:, index])
        obs = toy.step(action).obs["state"]


def test_alone_it_decides_as_in_the_evaluation_but_for_the_last_bits(toy_file):
    exact, fast = (reinflow.load(toy_file, seed=SEED, exact=exact) for exact in (True, False))
    for index in range(9):
        obs = torch.full((3,), 0.1 * index)
        torch.testing.assert_close(fast(obs), exact(obs), rtol=1e-5, atol=1e-6)


def test_a_simulated_episode_of_a_stock_env_is_that_of_the_evaluation(tmp_path):
    pytest.importorskip("mani_skill")
    import gymnasium

    env = make_env(EnvConfig("PickCube-v1", num_workers=0, max_episode_steps=8), 1, 4, 2, 1.0)
    policy = noisy_policy(env.spec)
    expected = evaluate(policy, env, episodes=1, seed=SEED)
    env.close()
    loaded = reinflow.load(saved(tmp_path / "policy.safetensors", policy, env.spec), seed=SEED, exact=True)
    task = loaded.task
    stock = gymnasium.make(
        task.env_id, obs_mode="state", control_mode=task.control_mode, sim_backend="physx_cpu", render_backend="none"
    )
    obs, _ = stock.reset(seed=SEED)
    total = 0.0
    for _ in range(8):
        obs, reward, *_ = stock.step(loaded(obs))
        total += float(reward)
    stock.close()
    assert total == pytest.approx(expected.return_.item(), rel=1e-6)


def as_kinds(state: Tensor) -> dict[str, Any]:
    """One observation in every form, and what its action has to be."""
    array = state.numpy()
    return {
        "tensor": (state, Tensor, (2,)),
        "array": (array, np.ndarray, (2,)),
        "array of doubles": (array.astype(np.float64), np.ndarray, (2,)),
        "list": (array.tolist(), np.ndarray, (2,)),
        "dict of tensors": ({"state": state}, Tensor, (2,)),
        "dict of arrays": ({"state": array, "reward": 1.0}, np.ndarray, (2,)),
        "batch of one": (state[None], Tensor, (1, 2)),
        "batch of arrays": (array[None], np.ndarray, (1, 2)),
    }


@pytest.mark.parametrize("kind", as_kinds(torch.zeros(3)))
def test_an_action_is_of_the_kind_of_its_observation(toy_file, kind):
    state = torch.tensor([0.2, -0.1, 0.3])
    expected = reinflow.load(toy_file)(state)
    obs, kind_of_action, shape = as_kinds(state)[kind]
    action = reinflow.load(toy_file)(obs)
    assert isinstance(action, kind_of_action)
    assert tuple(action.shape) == shape
    assert action.dtype in (torch.float32, np.float32)
    torch.testing.assert_close(torch.as_tensor(action).reshape(2), expected, rtol=1e-5, atol=1e-6)


def test_a_loaded_policy_repeats_itself_and_its_next_episode_has_other_noise(toy_file):
    def episode(policy: StepwisePolicy) -> Tensor:
        policy.reset()
        return torch.stack([policy(torch.zeros(3)) for _ in range(60)])  # longer than the task's 24 steps

    first, again = reinflow.load(toy_file), reinflow.load(toy_file)
    one = episode(first)
    assert torch.equal(one, episode(again))
    assert not torch.equal(one, episode(first))
    assert torch.equal(episode(first), episode(reinflow.load(toy_file, seed=2)))
    assert len({tuple(row) for row in one[::4].tolist()}) > 10  # of 15 chunks: a new x_0 each, some at the bounds


def test_a_receding_horizon_decides_as_often_as_it_says(toy_file, monkeypatch):
    for act_horizon, decisions in ((None, 3), (1, 12), (7, 2)):
        policy = reinflow.load(toy_file, act_horizon=act_horizon)
        act = Mock(side_effect=policy.policy.act)
        monkeypatch.setattr(policy.policy, "act", act)
        for _ in range(12):
            policy(torch.zeros(3))
        assert act.call_count == decisions
    with pytest.raises(UserError, match="pred_horizon 8 must be at least"):
        reinflow.load(toy_file, act_horizon=8)


def test_rows_that_begin_a_new_episode_forget_the_last_one_and_the_others_go_on(toy_file):
    torch.manual_seed(0)
    frames = torch.randn(10, 2, 3)
    both, alone = reinflow.load(toy_file), reinflow.load(toy_file)
    actions = []
    for index, frame in enumerate(frames):
        if index == 5:
            both.reset(np.array([False, True]))
        actions.append(both(frame))
    undisturbed = reinflow.load(toy_file)
    going_on = [undisturbed(frame) for frame in frames]
    torch.testing.assert_close(torch.stack(actions)[:, 0], torch.stack(going_on)[:, 0], rtol=1e-5, atol=1e-6)
    alone = reinflow.load(toy_file, seed=2)  # seeds 0 and 1 were those of the first two episodes
    restarted = [alone(frame[1]) for frame in frames[5:]]
    torch.testing.assert_close(torch.stack(actions)[5:, 1], torch.stack(restarted), rtol=1e-5, atol=1e-6)


CAMERAS = ImageSpec(("hand", "base"), 16, 20, rgb=True, depth=True)


def seeing_policy(cameras: ImageSpec, state_dim: int) -> tuple[Policy, EnvSpec]:
    mode = "+".join(cameras.names)
    task = EnvSpec("Seen-v0", mode, "c", "b", "r", state_dim, (-1.0,) * 2, (1.0,) * 2, 24, image=cameras)
    size = {"mlp_hidden_dim": 16, "mlp_depth": 1, "visual_feature_dim": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spec = PolicyConfig.of(net="mlp", act_horizon=2, pred_horizon=4, **size).for_env(task, 2)
        policy = build_policy(spec)
        policy.fit_normalizers_(torch.randn(64, state_dim), torch.rand(64, 2) * 2 - 1)
    return policy, task


def test_maniskills_own_dict_is_the_dict_of_arrays_that_it_holds(tmp_path):
    pytest.importorskip("mani_skill")
    path = saved(tmp_path / "policy.safetensors", *seeing_policy(CAMERAS, 8))
    generator = torch.Generator().manual_seed(0)
    qpos, pose, grasped = torch.randn(3, 4, generator=generator), torch.randn(3, 3, generator=generator), [1, 0, 1]
    rgb = torch.randint(0, 256, (3, 2, 16, 20, 3), generator=generator, dtype=torch.uint8)
    depth = torch.randint(0, 900, (3, 2, 16, 20, 1), generator=generator).to(torch.int16)
    held = torch.tensor(grasped, dtype=torch.bool)
    own = {
        "agent": {"qpos": qpos},
        "extra": {"is_grasped": held, "tcp_pose": pose},
        "sensor_param": {"hand": {}},
        "sensor_data": {
            name: {"rgb": rgb[:, index], "depth": depth[:, index]} for index, name in enumerate(("hand", "base"))
        },
    }
    state = torch.cat((qpos, held[:, None].float(), pose), 1)
    batch = reinflow.load(path)(own)
    torch.testing.assert_close(batch, reinflow.load(path)({"state": state, "rgb": rgb, "depth": depth}))
    single = {
        "agent": {"qpos": qpos[0].numpy()},
        "extra": {"is_grasped": np.bool_(True), "tcp_pose": pose[0].numpy()},
        "sensor_data": {
            name: {"rgb": rgb[0, index].numpy(), "depth": depth[0, index].numpy()}
            for index, name in enumerate(("hand", "base"))
        },
    }
    np.testing.assert_allclose(reinflow.load(path)(single), batch[0].numpy(), rtol=1e-4, atol=1e-5)


def test_one_camera_may_leave_its_axis_out(tmp_path):
    path = saved(tmp_path / "p.safetensors", *seeing_policy(ImageSpec(("eye",), 16, 20, rgb=True, depth=False), 3))
    rgb = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    with_axis, without = ({"state": np.zeros(3), "rgb": value} for value in (rgb[None], rgb))
    assert np.array_equal(reinflow.load(path)(with_axis), reinflow.load(path)(without))
    with pytest.raises(UserError, match=r"rgb of the observation is torch.float32: this policy needs torch.uint8"):
        reinflow.load(path)({"state": np.zeros(3), "rgb": rgb.astype(np.float32)})
    with pytest.raises(UserError, match=r"has no rgb: this policy needs state \(3,\), rgb \(1, 16, 20, 3\)"):
        reinflow.load(path)(np.zeros(3))


@pytest.mark.parametrize(
    ("obs", "sentence"),
    [
        (np.zeros(4), r"state of the observation is \(1, 4\): each row has to be \(3,\)"),
        ((np.zeros(3), {}), "takes obs alone"),
        ({"observation": np.zeros(3)}, r"holds observation: this policy needs state \(3,\)"),
    ],
)
def test_what_the_policy_does_not_see_is_told_in_a_sentence(toy_file, obs, sentence):
    with pytest.raises(UserError, match=sentence):
        reinflow.load(toy_file)(obs)


def test_another_number_of_rows_needs_a_reset(toy_file):
    policy = reinflow.load(toy_file)
    policy(torch.zeros(2, 3))
    with pytest.raises(UserError, match="got 3 observations after 2"):
        policy(torch.zeros(3, 3))
    with pytest.raises(UserError, match="one bool for each observed row"):
        policy.reset([True])
    policy.reset()
    assert policy(torch.zeros(3, 3)).shape == (3, 2)


def test_the_snippet_of_the_readme_runs(toy_file, tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(import reinflow\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    run = re.search(r'load\("(.*?)"\)', block)
    assert run
    folder = tmp_path / run[1]
    folder.mkdir(parents=True)
    (folder / "best_model.safetensors").write_bytes(toy_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"obs": np.zeros(3)}
    exec(block, names)
    assert names["action"].shape == (2,)


def test_importing_the_package_imports_no_torch():
    code = "import sys, reinflow; print(*{'torch', 'numpy', 'gymnasium'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
