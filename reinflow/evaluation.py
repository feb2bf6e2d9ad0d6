"""Whole-episode evaluation of a policy: success, return, length and the policy's speed.

Every env contributes only complete first episodes after a seeded reset, so short episodes are not over-represented.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reinflow import interrupts
from reinflow.types import ChunkEnv

if TYPE_CHECKING:
    from reinflow.policies.base import Policy


@dataclass(frozen=True)
class EvalConfig:
    """How a policy is evaluated."""

    num_eval_envs: int = 100
    """envs that run side by side"""
    num_eval_episodes: int = 100
    """whole episodes per evaluation"""
    eval_seed: int = 10_000
    """start states and denoising noise of every evaluation; kept apart from the training seeds"""

    @property
    def envs(self) -> int:
        """No more envs than episodes."""
        return min(self.num_eval_envs, self.num_eval_episodes)


@dataclass(frozen=True)
class Evaluation:
    """Results of `m` whole episodes."""

    success_once: Bool[Tensor, "m"]
    success_at_end: Bool[Tensor, "m"]
    return_: Float[Tensor, "m"]
    length: Int[Tensor, "m"]
    calls_per_episode: float
    """policy calls of one env until its episode ended, mean"""
    calls_per_second: float
    """batched policy calls per second of policy time"""
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Means under their logged names."""
        return {
            "eval/success_once": self.success_once.float().mean().item(),
            "eval/success_at_end": self.success_at_end.float().mean().item(),
            "eval/return": self.return_.mean().item(),
            "eval/episode_len": self.length.float().mean().item(),
        }


def standard_error(rate: float, episodes: int) -> float:
    """Of a success rate, with two successes and two failures added: 0 or all of them leave a doubt, too.

    Source: Agresti & Coull (1998), "Approximate is better than 'exact' for interval estimation of binomial
    proportions".
    """
    total = episodes + 4
    center = (rate * episodes + 2) / total
    return math.sqrt(center * (1 - center) / total)


@torch.no_grad()
def evaluate(
    policy: Policy, env: ChunkEnv, *, episodes: int, seed: int, num_inference_steps: int | None = None
) -> Evaluation:
    """Run `episodes` whole episodes without exploration noise; the same seed gives the same start states and noise."""
    generator = torch.Generator(env.device).manual_seed(seed)
    was_training = policy.training
    policy.eval()
    rounds, calls, policy_seconds = [], [], 0.0
    started = time.perf_counter()
    for index in range(math.ceil(episodes / env.num_envs)):
        obs = env.reset(seed=seed + index)
        pending = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        result = torch.zeros(env.num_envs, 5, device=env.device)
        while pending.any():
            interrupts.check()
            before = time.perf_counter()
            actions = policy.act(obs, generator=generator, num_steps=num_inference_steps)
            if env.device.type == "cuda":
                torch.cuda.synchronize(env.device)
            policy_seconds += time.perf_counter() - before
            step = env.step_chunk(actions)
            result[:, 4] += pending
            stats = step.episode
            columns = (stats.success_once, stats.success_at_end, stats.return_, stats.length)
            # an episode that broke counts as it stood: a policy that breaks its env shall not gain by a new start
            over = step.ended | step.broken
            first_end = pending & over
            result[:, :4] = torch.where(
                first_end[:, None], torch.stack([c.float() for c in columns], dim=1), result[:, :4]
            )
            pending &= ~over
            calls.append(1)
            obs = step.obs
        rounds.append(result)
    policy.train(was_training)
    result = torch.cat(rounds)[:episodes].cpu()
    return Evaluation(
        success_once=result[:, 0].bool(),
        success_at_end=result[:, 1].bool(),
        return_=result[:, 2],
        length=result[:, 3].long(),
        calls_per_episode=result[:, 4].mean().item(),
        calls_per_second=len(calls) / max(policy_seconds, 1e-9),
        seconds=time.perf_counter() - started,
    )
