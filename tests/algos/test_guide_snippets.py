"""The Python snippets of the user's guide, run as they stand there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from nets import ExploreNoiseNet, NoisyVelocityUNet1D, ShortCutVelocityUNet1D
from nets.critic import ValueNetwork
from reinflow.agent import ReinFlowAgent
from reinflow.algos.rollout import RolloutBuffer
from reinflow.errors import UserError
from reinflow.policies import PolicySpec, build_policy
from reinflow.policies.base import Policy
from reinflow.storage.checkpoint import Checkpoint, save_checkpoint
from reinflow.types import EnvSpec

UNET = {"diffusion_step_embed_dim": 16, "down_dims": (16, 32), "n_groups": 8}
SPEC = PolicySpec.of(
    obs_horizon=2, state_dim=128, action_dim=7, unet_dims=(16, 32), diffusion_step_embed_dim=16, num_inference_steps=4
)


def make_agent() -> ReinFlowAgent:
    return ReinFlowAgent(
        velocity_net=ShortCutVelocityUNet1D(input_dim=7, global_cond_dim=256, **UNET),
        obs_dim=256,
        act_dim=7,
        pred_horizon=16,
        act_horizon=8,
        num_inference_steps=8,
        gamma=0.99,
        gae_lambda=0.95,
        clip_ratio=0.2,
        entropy_coef=0.01,
        value_coef=0.5,
        critic_warmup_steps=5000,
        min_noise_std=0.01,
        max_noise_std=0.3,
        noise_decay_type="linear",
        noise_decay_steps=500000,
    )


def write_checkpoint(path: Path, spec: PolicySpec = SPEC) -> tuple[Policy, ValueNetwork]:
    policy, value = build_policy(spec), ValueNetwork(spec.cond_dim)
    policy.fit_normalizers_(3 + torch.randn(50, spec.state_dim), 4 * torch.rand(50, spec.action_dim))
    bounds = (-1.0,) * spec.action_dim, (1.0,) * spec.action_dim
    env = EnvSpec("Toy-v0", "state", "pd_ee_delta_pose", "toy", "normalized_dense", spec.state_dim, *bounds, 50)
    save_checkpoint(path, Checkpoint(spec, env, policy.state_dict(), parts={"critic": value.state_dict()}))
    return policy, value


def test_networks():
    net = ShortCutVelocityUNet1D(input_dim=7, global_cond_dim=256, **UNET)
    x, t, d, obs = torch.randn(4, 16, 7), torch.rand(4), torch.rand(4), torch.randn(4, 256)
    assert net(sample=x, timestep=t, step_size=d, global_cond=obs).shape == (4, 16, 7)
    explore_noise_net = ExploreNoiseNet(64, 256, 7)
    assert explore_noise_net(time_emb=torch.randn(4, 64), obs_emb=obs).shape == (4, 7)
    velocity, noise, noise_std = NoisyVelocityUNet1D(net, explore_noise_net)(x, t, d, obs, sample_noise=True)
    assert velocity.shape == noise.shape == noise_std.shape == (4, 16, 7)


def test_rollout_update_and_schedules():
    agent, num_envs, rollout_steps = make_agent(), 2, 3
    buffer = RolloutBuffer(
        buffer_size=rollout_steps * num_envs,
        obs_dim=256,
        pred_horizon=16,
        act_dim=7,
        gamma=0.99,
        gae_lambda=0.95,
    )
    for _ in range(rollout_steps):
        obs_features = torch.randn(num_envs, 256)
        action_chunk = agent.get_action(obs_features)
        chunk_done = torch.zeros(num_envs, dtype=torch.bool)
        buffer.add(
            obs=obs_features,
            actions=action_chunk.states,
            reward=torch.rand(num_envs),
            value=agent.get_value(obs_features),
            log_prob=action_chunk.log_prob,
            done=chunk_done,
        )
    buffer.compute_returns_and_advantages(agent.get_value(obs_features), chunk_done)

    assert agent.is_in_critic_warmup()
    agent.update_noise_schedule(step=250_000)
    assert not agent.is_in_critic_warmup()
    # linear: .3 * .5 + .01 * .5 = .155 per step
    torch.testing.assert_close(agent.actor.noisy_net.explore_noise_net.max_std, torch.tensor(0.155))

    batch = next(buffer.minibatches(6))
    loss_dict = agent.compute_ppo_loss(
        obs_cond=batch["obs"],
        actions=batch["actions"],
        old_log_probs=batch["log_probs"],
        advantages=batch["advantages"],
        returns=batch["returns"],
    )
    expected = loss_dict["policy_loss"] + 0.5 * loss_dict["value_loss"] + 0.01 * loss_dict["entropy_loss"]
    torch.testing.assert_close(loss_dict["loss"], expected)
    value_loss = F.mse_loss(agent.get_value(batch["obs"]), batch["returns"])
    torch.testing.assert_close(loss_dict["value_loss"], value_loss)
    loss_dict["loss"].backward()
    assert all(p.grad is not None for p in agent.policy.net.parameters())


def test_loading_a_checkpoint_of_two_observations_brings_weights_normalisers_horizons_and_the_value(tmp_path):
    agent = make_agent()
    parameters = list(agent.actor.velocity_parameters())
    policy, value = write_checkpoint(tmp_path / "best_model.pt")
    agent.load_from_aw_shortcut_flow(checkpoint_path=tmp_path / "best_model.pt", device="cpu")
    obs = {"state": torch.randn(3, 2, 128)}
    torch.testing.assert_close(
        agent.policy.act(obs, torch.Generator().manual_seed(1)),
        policy.act(obs, torch.Generator().manual_seed(1), num_steps=8),
    )
    torch.testing.assert_close(agent.get_value(agent.encode(obs)), value(policy.encode(obs)))
    # evaluations and checkpoints use the K that is fine-tuned, not the one that the checkpoint was trained with
    assert agent.policy.spec.num_inference_steps == agent.actor.num_steps == 8
    # the newest of two observations belongs to row 1, so rows 1..8 are executed and scored in the last step
    assert agent.scored[-1].any(1).nonzero().flatten().tolist() == list(range(1, 9))
    # an optimiser that was made before loading still holds the right parameters
    assert all(a is b for a, b in zip(parameters, agent.actor.velocity_parameters(), strict=True))


@pytest.mark.parametrize(
    "changes", [{"state_dim": 127}, {"pred_horizon": 32}, {"act_horizon": 4}, {"family": "reflow"}, {"action_dim": 6}]
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_both_values(tmp_path, changes):
    path = tmp_path / "best_model.pt"
    write_checkpoint(path, PolicySpec.from_dict(SPEC.to_dict() | changes))
    with pytest.raises(UserError, match=r"this ReinFlowAgent"):
        make_agent().load_from_aw_shortcut_flow(path)


def test_the_guides_noise_bounds_are_those_of_every_denoising_step():
    net = make_agent().actor.noisy_net.explore_noise_net
    torch.testing.assert_close(torch.stack((net.min_std, net.max_std)), torch.tensor([0.01, 0.3]))


def test_an_unknown_option_is_refused():
    net = ShortCutVelocityUNet1D(input_dim=7, global_cond_dim=256, **UNET)
    with pytest.raises(TypeError, match="clip_ration"):
        ReinFlowAgent(net, obs_dim=256, act_dim=7, pred_horizon=16, act_horizon=8, clip_ration=0.2)
