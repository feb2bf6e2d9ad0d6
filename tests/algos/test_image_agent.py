"""An agent that sees pictures: what a rollout stores, and what an update does with it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nets.critic import PrivilegedValueNetwork
from reinflow.agent import ReinFlowAgent
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO
from reinflow.algos.reinflow import ReinFlow, rollout_buffer
from reinflow.algos.rollout import RolloutBuffer
from reinflow.envs.synthetic import SyntheticEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.policies import PolicyConfig, build_policy
from reinflow.training.rollouts import collect
from reinflow.types import ImageSpec, Obs

ENVS, DECISIONS, FRAMES = 4, 3, 2
IMAGE = ImageSpec(("left", "hand"), 16, 24, rgb=True, depth=True)
NET = PolicyConfig.of(
    net="mlp",
    obs_horizon=FRAMES,
    act_horizon=2,
    pred_horizon=4,
    mlp_hidden_dim=32,
    mlp_depth=1,
    visual_feature_dim=8,
)
PPO_CONFIG = PPOConfig(minibatch_size=6, ppo_epochs=2, critic_warmup_steps=0)


class Privileged(ActionChunk):
    """Adds a full state of five numbers to every observation."""

    def reset(self, seed: int | None = None) -> Obs:
        return self._with_state(super().reset(seed))

    def step_chunk(self, actions: torch.Tensor):
        step = super().step_chunk(actions)
        return replace(step, obs=self._with_state(step.obs), final_obs=self._with_state(step.final_obs))

    def _with_state(self, obs: Obs) -> Obs:
        return obs | {"privileged": 100 + obs["state"][..., :5]}


def played(ppo: PPOConfig = PPO_CONFIG, **options: object) -> tuple[ReinFlowAgent, RolloutBuffer]:
    """An agent and a rollout of it."""
    torch.manual_seed(0)
    env = Privileged(SyntheticEnv(ENVS, state_dim=6, max_episode_steps=5, image=IMAGE), 2, FRAMES, ppo.gamma)
    policy = build_policy(NET.for_env(env.spec, 2))
    agent = ReinFlowAgent.from_policy(policy, ppo, **options)  # type: ignore[arg-type]
    buffer = rollout_buffer(agent, ppo, ENVS * DECISIONS)
    learner = ReinFlow(agent, PPO(agent, ppo), buffer)
    collect(learner, env, env.reset(seed=0), torch.Generator().manual_seed(0))
    return agent, buffer


def test_a_frozen_encoder_stores_features_and_no_pictures():
    agent, buffer = played(freeze_visual_encoder=True)
    # two frames of six numbers and eight features
    assert buffer.data["obs"].shape == (DECISIONS, ENVS, FRAMES * (6 + 8))
    assert "critic_obs" not in buffer.data
    assert not any(p.requires_grad for p in agent.policy.encoder.parameters())


def test_a_trained_encoder_stores_pictures_as_bytes():
    _, buffer = played(freeze_visual_encoder=False)
    obs = buffer.data["obs"]
    assert {name: (value.dtype, tuple(value.shape[2:])) for name, value in obs.items()} == {
        "state": (torch.float32, (FRAMES, 6)),
        "rgb": (torch.uint8, (FRAMES, 2, 16, 24, 3)),
        "depth": (torch.int16, (FRAMES, 2, 16, 24, 1)),
    }
    assert buffer.data["critic_obs"].shape == (DECISIONS, ENVS, FRAMES * (6 + 8))


@pytest.mark.parametrize("shift", [0, 3])
def test_pictures_are_scored_as_they_were_sampled(shift: int):
    agent, buffer = played(replace(PPO_CONFIG, online_random_shift=shift), freeze_visual_encoder=False)
    rows = next(iter(buffer.minibatches(12)))
    losses = agent.compute_ppo_loss(
        agent.condition(rows["obs"]), rows["actions"], rows["log_probs"], rows["advantages"], rows["returns"]
    )
    assert losses["ratio_deviation"] < 1e-4


def test_a_random_shift_moves_what_is_acted_on_and_stored():
    still, moved = (
        played(replace(PPO_CONFIG, online_random_shift=shift), freeze_visual_encoder=False)[1].data["obs"]["rgb"][0]
        for shift in (0, 3)
    )
    assert not torch.equal(still, moved)


@pytest.mark.parametrize("frozen", [True, False])
def test_an_update_trains_the_encoder_unless_it_is_frozen(frozen: bool):
    agent, buffer = played(freeze_visual_encoder=frozen)
    before = {name: value.clone() for name, value in agent.policy.encoder.visual.state_dict().items()}
    metrics = PPO(agent, PPO_CONFIG).update(buffer)
    after = agent.policy.encoder.visual.state_dict()
    moved = [not torch.equal(before[name], after[name]) for name in before]
    assert not any(moved) if frozen else all(moved)
    assert metrics["ratio_deviation"] < 1e-4


def test_the_critic_alone_neither_encodes_nor_moves_anything_else(monkeypatch: pytest.MonkeyPatch):
    agent, buffer = played(freeze_visual_encoder=False)
    monkeypatch.setattr(agent.policy.encoder, "forward", None)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    critic = [p.clone() for p in agent.critic.parameters()]
    PPO(agent, PPO_CONFIG).update(buffer, critic_only=True)
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())
    assert all(not torch.equal(a, b) for a, b in zip(critic, agent.critic.parameters(), strict=True))


def test_a_privileged_critic_sees_the_newest_full_state_normalised_once():
    agent, buffer = played(freeze_visual_encoder=True, privileged_dim=5)
    assert isinstance(agent.critic, PrivilegedValueNetwork)
    seen = buffer.data["critic_obs"]
    assert seen.shape == (DECISIONS, ENVS, 5)
    assert seen.mean() > 90  # the env's own numbers, 100 above the state
    PPO(agent, PPO_CONFIG).update(buffer)
    torch.testing.assert_close(agent.critic.normalizer.shift, seen.flatten(0, 1).mean(0))
    first = agent.critic.normalizer.shift.clone()
    buffer.data["critic_obs"] += 50
    PPO(agent, PPO_CONFIG).update(buffer)
    assert torch.equal(agent.critic.normalizer.shift, first)


def test_a_value_that_sees_something_else_starts_anew():
    agent, _ = played(freeze_visual_encoder=True, privileged_dim=5)
    before = [p.clone() for p in agent.critic.parameters()]
    other, _ = played(freeze_visual_encoder=True)
    of_stage_2 = SimpleNamespace(parts={"critic": other.critic.state_dict()}, objective=None)
    agent.load_critic(of_stage_2, "V of Stage 2")
    assert all(torch.equal(a, b) for a, b in zip(before, agent.critic.parameters(), strict=True))
