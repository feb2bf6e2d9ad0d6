"""What a GPU run does, without a GPU: envs, Stage 3, evaluation and profiler on tensors that tell of each wait."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor

from reinflow import memory
from reinflow.agent import ReinFlowAgent
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO
from reinflow.algos.reinflow import ReinFlow, rollout_buffer
from reinflow.envs import EnvConfig
from reinflow.envs.headless import render_device_available
from reinflow.envs.wrappers import ActionChunk
from reinflow.policies import PolicyConfig, build_policy
from reinflow.run.metrics import to_host
from reinflow.training.config import OnPolicyConfig
from reinflow.training.evaluation import evaluate
from reinflow.training.loops import OnPolicy
from reinflow.types import ChunkStep
from tests.gpu.accelerator import Accelerator
from tests.gpu.double import batched, double_env

ENVS, CHUNK, FRAMES, LIMIT = 4, 3, 2, 12
"""envs, env steps of a decision, frames of an observation, env steps of an episode: one of four decisions"""
DECISIONS, ITERATIONS = 3, 3

modes = pytest.mark.parametrize(
    ("env_id", "obs_mode"),
    [("PickCube-v1", "state"), ("PickCube-v1", "rgb"), ("SyntheticChunk-v0", "state"), ("SyntheticChunk-v0", "rgb"),
     ("SyntheticChunk-v0", "depth"), ("SyntheticChunk-v0", "rgb+depth")],
)  # fmt: skip


@pytest.fixture
def gpu():
    with Accelerator() as accelerator:
        yield accelerator


def config(env_id: str, obs_mode: str = "state", **options: object) -> EnvConfig:
    if env_id == "PickCube-v1":
        pytest.importorskip("mani_skill")
        if obs_mode != "state" and not render_device_available():
            pytest.skip("nothing to render with")
    return EnvConfig(env_id, obs_mode=obs_mode, max_episode_steps=LIMIT, **options)


def chunks(count: int, action_dim: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(ENVS, CHUNK, action_dim, generator=generator) * 2 - 1 for _ in range(count)]


def on_host(gpu: Accelerator, step: ChunkStep) -> dict[str, Tensor]:
    values = {**vars(step), **{f"episode.{name}": value for name, value in vars(step.episode).items()}}
    values |= {f"obs.{name}": value for name, value in step.obs.items()}
    values |= {f"final_obs.{name}": value for name, value in step.final_obs.items()}
    return {name: gpu.taken(value) for name, value in values.items() if isinstance(value, Tensor)}


# ---- envs -----------------------------------------------------------------------------------------------------------


@modes
def test_envs_behind_the_gpu_do_what_they_do_on_the_cpu(gpu, env_id, obs_mode):
    settings = config(env_id, obs_mode)
    env = double_env(gpu, settings, ENVS, CHUNK, FRAMES)
    with gpu.paused_():
        plain = ActionChunk(batched(settings.completed(), ENVS), CHUNK, FRAMES, 0.97)
        plain.reset(seed=0)
    first = env.reset(seed=0)
    assert all(gpu.owns(value) for value in first.values())
    for actions in chunks(6, env.spec.action_dim):  # the episodes end after the fourth
        with gpu.watched() as reads:
            step = env.step_chunk(gpu.moved(actions))
        assert len(reads) <= 1
        with gpu.paused_():
            found, expected = on_host(gpu, step), on_host(gpu, plain.step_chunk(actions))
        assert found.keys() == expected.keys()
        for name in found:
            # only where the simulator renders on demand, older pictures are none of the policy's business
            assert torch.equal(found[name], expected[name]), name
    env.close()
    plain.close()


def test_a_decision_asks_once_and_not_where_no_episode_can_end(gpu):
    env = double_env(gpu, config("PickCube-v1"), ENVS, CHUNK, FRAMES)
    env.reset(seed=0)
    found = []
    for actions in chunks(8, env.spec.action_dim):
        with gpu.watched() as reads:
            step = env.step_chunk(gpu.moved(actions))
        found.append((len(reads), step.ends))
    env.close()
    assert found == 2 * [(0, False), (0, False), (0, False), (1, True)]


def test_envs_that_may_end_early_are_asked_at_every_decision(gpu):
    env = double_env(gpu, config("PickCube-v1", terminate_on_success=True), ENVS, CHUNK, FRAMES)
    env.reset(seed=0)
    for actions in chunks(3, env.spec.action_dim):
        with gpu.watched() as reads:
            env.step_chunk(gpu.moved(actions))
        assert [read.stack[-1] for read in reads] == ["_look"]
    env.close()


def test_an_env_that_breaks_while_nobody_asks_waits_for_its_reset_and_trains_nothing(gpu):
    env = double_env(gpu, config("PickCube-v1"), ENVS, CHUNK, FRAMES)
    start = env.reset(seed=0)["state"]
    broken, ends = [], []
    for index, actions in enumerate(chunks(5, env.spec.action_dim)):
        if index == 1:
            actions[2] = math.nan
        step = env.step_chunk(gpu.moved(actions))
        with gpu.paused_():
            broken.append(gpu.taken(step.broken).tolist())
            ends.append(gpu.taken(step.truncated).tolist())
            lengths = gpu.taken(step.episode.length).tolist()
    env.close()
    sound, cut = [False] * 4, [False, False, True, False]
    assert broken == [sound, cut, cut, cut, sound]  # it broke in its second decision; all are reset after the fourth
    assert ends[3] == [True, True, False, True]
    assert lengths == [3, 3, 3, 3]
    assert start.shape == step.obs["state"].shape


# ---- Stage 3 --------------------------------------------------------------------------------------------------------


def make_agent(gpu: Accelerator, env: ActionChunk, ppo: PPOConfig, **options: object) -> ReinFlowAgent:
    torch.manual_seed(0)
    with gpu.paused_():
        config = PolicyConfig.of(
            net="mlp", mlp_hidden_dim=16, mlp_depth=1, obs_horizon=FRAMES, act_horizon=CHUNK, pred_horizon=4,
            visual_feature_dim=8,
        )  # fmt: skip
        spec = config.for_env(env.spec, num_inference_steps=2)
        agent = ReinFlowAgent.from_policy(build_policy(spec), ppo, **options)
        gpu.moved_(agent)
    return agent


def stage_3(gpu: Accelerator, settings: EnvConfig, ppo: PPOConfig, **options: object) -> tuple[list, list]:
    """Three iterations of Stage 3's own loop; the waits, and what was logged."""
    env = double_env(gpu, settings, ENVS, CHUNK, FRAMES)
    agent = make_agent(gpu, env, ppo, **options)
    learner = ReinFlow(agent, PPO(agent, ppo), rollout_buffer(agent, ppo, DECISIONS * ENVS))
    logged: list[dict[str, float]] = []

    def log(metrics: dict, step: int) -> dict[str, float]:
        logged.append(to_host(metrics))
        return logged[-1]

    nothing = mock.Mock()
    run = SimpleNamespace(config=SimpleNamespace(seed=0), log=log, status=nothing, alarm=nothing, progress=nothing)
    steps = ITERATIONS * ENVS * DECISIONS * CHUNK
    loop = OnPolicy(learner, env, OnPolicyConfig(ENVS, DECISIONS, steps), run, torch.Generator(gpu.device))
    loop.begin()
    with gpu.watched() as reads:
        while not loop.over:
            loop.iterate()
    env.close()
    assert len(logged) == ITERATIONS
    assert all(math.isfinite(value) for line in logged for value in line.values())
    return reads, logged


def waits_of(reads: list, function: str) -> Counter:
    """How often, by the innermost function, the host waited inside of one."""
    return Counter(read.stack[-1] for read in reads if function in read.stack)


def test_stage_3_waits_where_episodes_end_and_for_its_metrics(gpu):
    ppo = PPOConfig(minibatch_size=6, ppo_epochs=2, critic_warmup_steps=1)
    reads, logged = stage_3(gpu, config("PickCube-v1"), ppo)
    assert waits_of(reads, "collect") == {"_look": 2}  # nine decisions; all episodes end after the fourth and eighth
    assert waits_of(reads, "update") == {}
    # of an iteration: whether anything was usable, the env steps, whether an episode ended; the metrics in one transfer
    assert waits_of(reads, "iterate")["iterate"] == 2 * ITERATIONS
    assert len(reads) <= 2 + 4 * ITERATIONS
    assert logged[1]["losses/ratio_deviation"] < 1e-4


def test_the_stop_at_a_kl_is_the_one_wait_of_an_epoch(gpu):
    ppo = PPOConfig(minibatch_size=6, ppo_epochs=2, critic_warmup_steps=0, target_kl=1e9)
    reads, _ = stage_3(gpu, config("SyntheticChunk-v0"), ppo)
    assert waits_of(reads, "update") == {"update": 2 * ITERATIONS}


@pytest.mark.parametrize("freeze", [True, False])
def test_stage_3_from_pictures_waits_no_more(gpu, freeze):
    ppo = PPOConfig(minibatch_size=6, ppo_epochs=1, critic_warmup_steps=0, online_random_shift=2)
    reads, _ = stage_3(gpu, config("SyntheticChunk-v0", "rgb+depth"), ppo, freeze_visual_encoder=freeze)
    assert set(waits_of(reads, "collect")) <= {"_look"}
    assert waits_of(reads, "collect")["_look"] <= ITERATIONS * DECISIONS
    assert waits_of(reads, "update") == {}


# ---- what else acts -------------------------------------------------------------------------------------------------


def test_an_evaluation_on_the_gpu_gives_whole_episodes(gpu):
    env = double_env(gpu, config("PickCube-v1"), ENVS, CHUNK, FRAMES)
    agent = make_agent(gpu, env, PPOConfig())
    with gpu.watched() as reads:
        result = evaluate(agent.policy, env, episodes=ENVS, seed=5)
    env.close()
    assert result.length.tolist() == [LIMIT] * ENVS
    assert waits_of(reads, "play") == {"play": 2, "_look": 1}  # at its start, and where the episodes ended


def test_the_memory_profiler_measures_an_iteration(gpu, monkeypatch):
    def make_env(settings, num_envs, act_horizon, obs_horizon, gamma, device):
        return double_env(gpu, settings, num_envs, act_horizon, obs_horizon, gamma)

    def from_policy(*args, **options):
        with gpu.paused_():
            agent = original(*args, **options)
            gpu.moved_(agent)
        return agent

    original = ReinFlowAgent.from_policy
    monkeypatch.setattr("reinflow.envs.make_env", make_env)
    monkeypatch.setattr(ReinFlowAgent, "from_policy", from_policy)
    point = memory.Point("SyntheticChunk-v0", "state", "auto", ENVS, 8, 2, 2, "mlp")
    assert memory.measure(point).env_steps_per_s > 0


def test_the_stand_in_notices_what_a_gpu_would(gpu):
    x = torch.arange(3.0, device=gpu.device)
    with gpu.watched() as reads:
        mask = x > 1
        bool(mask.any()), x[mask], x.cpu(), torch.tensor([1.0], device=gpu.device), float(x[0])
        x[mask] = 0.0  # the one that waits for nothing
    assert [read.what for read in reads] == ["__bool__", "__getitem__", "cpu", "tensor", "__float__"]
    assert gpu.owns(x * 2) and not gpu.owns(torch.ones(2)) and not gpu.owns(x.cpu())
    if not gpu.real:
        with pytest.raises(AssertionError, match="of the GPU and of the host"):
            x + torch.ones(3)
