"""What the product does cleverly, as one would write it first: the baselines of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn

from nets.unet1d import LocalConv1d
from nets.velocity import VelocityNet
from reinflow.agent import ReinFlowAgent
from reinflow.envs.wrappers import MOST_REWARD
from reinflow.policies.chain import chain_log_prob
from reinflow.types import BatchedEnv, ChunkStep, EpisodeStats, Obs, Stochastic


class LoopedChunks:
    """A `ChunkEnv` of states with lists per env, every number read on its own."""

    def __init__(self, env: BatchedEnv, act_horizon: int, obs_horizon: int, gamma: float):
        self.env = env
        self.num_envs = env.num_envs
        self.device = env.device
        self.spec = env.spec
        self.act_horizon = act_horizon
        self.obs_horizon = obs_horizon
        self.gamma = gamma

    def reset(self, seed: int | None = None) -> Obs:
        frame = self.env.reset(seed=seed)["state"]
        self.history = [[row] * self.obs_horizon for row in frame]
        self.returns, self.lengths = [0.0] * self.num_envs, [0] * self.num_envs
        self.once, self.at_end = [False] * self.num_envs, [False] * self.num_envs
        return self._obs()

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        low, high = (self._tensor(bound) for bound in (self.spec.action_low, self.spec.action_high))
        count = self.num_envs
        broken = [not bool(action.isfinite().all()) for action in actions]
        rewards, executed = [0.0] * count, [0] * count
        terminated, truncated = [False] * count, [False] * count
        for index in range(self.act_horizon):
            step = self.env.step(actions[:, index].clamp(low, high))
            for i in range(count):
                if broken[i] or terminated[i] or truncated[i]:
                    continue
                reward, frame = step.reward[i].item(), step.obs["state"][i]
                if not abs(reward) <= MOST_REWARD or not bool(frame.isfinite().all()):
                    broken[i] = True
                    continue
                rewards[i] += self.gamma**index * reward
                executed[i] += 1
                self.returns[i] += reward
                self.lengths[i] += 1
                self.at_end[i] = bool(step.success[i])
                self.once[i] = self.once[i] or self.at_end[i]
                self.history[i] = [*self.history[i][1:], frame]
                terminated[i] = bool(step.terminated[i])
                truncated[i] = not terminated[i] and self.lengths[i] >= self.spec.max_episode_steps
        episode = EpisodeStats(
            self._tensor(self.returns),
            self._tensor(self.lengths),
            self._tensor(self.once),
            self._tensor(self.at_end),
        )
        final_obs = self._obs()
        self._restart([i for i in range(count) if broken[i] or terminated[i] or truncated[i]])
        return ChunkStep(
            self._obs(),
            final_obs,
            self._tensor(rewards),
            self._tensor(executed),
            self._tensor(terminated),
            self._tensor(truncated),
            episode,
            self._tensor(broken),
        )

    def _restart(self, ended: list[int]) -> None:
        if not ended:
            return
        frame = self.env.reset(env_idx=self._tensor(ended))["state"]
        for i in ended:
            self.history[i] = [frame[i]] * self.obs_horizon
            self.returns[i], self.lengths[i], self.once[i], self.at_end[i] = 0.0, 0, False, False

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _obs(self) -> Obs:
        return {"state": torch.stack([torch.stack(frames) for frames in self.history])}

    def close(self) -> None:
        self.env.close()


def denoising_step(agent: ReinFlowAgent, k: int, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of one step, all of it computed anew."""
    actor = agent.actor
    t = torch.full((1,), k / actor.num_steps, device=x.device)
    d = torch.full((1,), 1 / actor.num_steps, device=x.device)
    velocity = agent.policy.avg_velocity(x, t, d, cond)
    return x + velocity / actor.num_steps, actor.noisy_net.noise_std(t, cond, horizon=x.shape[1])


def two_passes(agent: ReinFlowAgent, cond: Tensor, x_0: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """The parts of a `Chain`: draw it, then evaluate it again, step by step, for its log-probability."""
    states = [x_0]
    for k, eps in enumerate(noise):
        mean, std = denoising_step(agent, k, states[-1], cond)
        states.append(mean + std * eps)
    drawn = torch.stack(states, 1)
    means, stds = looped_moments(agent, drawn, cond)
    return drawn, means, stds, chain_log_prob(drawn, means, stds, agent.scored)


def looped_moments(agent: ReinFlowAgent, states: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
    """Scoring with one forward per denoising step."""
    pairs = [denoising_step(agent, k, states[:, k], cond) for k in range(agent.actor.num_steps)]
    means, stds = (torch.stack(values, 1) for values in zip(*pairs, strict=True))
    return means, stds


@contextmanager
def straightforward(agent: ReinFlowAgent) -> Iterator[None]:
    """`agent` samples in two passes and scores in a loop over k."""

    def moments(actor: Stochastic, states: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        return looped_moments(agent, states, cond)

    with (
        mock.patch.object(agent, "_denoise", lambda cond, x_0, noise: two_passes(agent, cond, x_0, noise)),
        mock.patch("reinflow.algos.ppo.chain_moments", moments),
    ):
        yield


@contextmanager
def unsplit() -> Iterator[None]:
    """Every row and k computes FiLM terms from its own time and condition; convolutions stay convolutions."""

    def features(net: VelocityNet, timestep: Tensor, step_size: Tensor, global_cond: Tensor) -> Tensor:
        rows, steps = len(global_cond), len(timestep)
        times = net.times(timestep.repeat(rows), step_size.repeat(rows))
        return (times + net.condition(global_cond.repeat_interleave(steps, 0))).unflatten(0, (rows, steps))

    def convolved(conv: LocalConv1d, x: Tensor) -> Tensor:
        return nn.Conv1d.forward(conv, x)

    with mock.patch.object(VelocityNet, "features", features), mock.patch.object(LocalConv1d, "forward", convolved):
        yield
