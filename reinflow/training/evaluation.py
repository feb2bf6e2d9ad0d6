"""Whole-episode evaluation of a policy: success, return, length and the policy's speed.

Episode i belongs to seed `seed + i` alone: its start state, its geometry, the noise that each of its decisions starts
from, and on a CPU every bit of its outcome, whatever ran beside it. Envs play in rounds, one episode each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reinflow.runtime import interrupts
from reinflow.runtime.rng import Stream, derived_seed
from reinflow.types import ChunkEnv, Obs

if TYPE_CHECKING:
    from reinflow.policies.wrapped import Acting


Z_95 = 1.96
"""of a normal distribution: 95 % lie within so many standard deviations"""
BLOCK = 50
"""rows of a policy call: a matrix product may round a row otherwise among another number of rows"""


@dataclass(frozen=True)
class Evaluation:
    """Results of `m` whole episodes."""

    seed: Int[Tensor, "m"]
    success_once: Bool[Tensor, "m"]
    success_at_end: Bool[Tensor, "m"]
    return_: Float[Tensor, "m"]
    length: Int[Tensor, "m"]
    best_of: int
    """chunks that were drawn per decision"""
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
            "eval/return_error": mean_error(self.return_).item(),
            "eval/episode_len": self.length.float().mean().item(),
        }

    def episodes(self) -> list[dict[str, Any]]:
        """One row per episode, so that two policies can be compared pair by pair."""
        names = {"seed": self.seed, "success_once": self.success_once, "success_at_end": self.success_at_end}
        columns = names | {"return": self.return_, "length": self.length}
        lists = (column.tolist() for column in columns.values())
        return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def mean_error(values: Float[Tensor, "m"]) -> Float[Tensor, ""]:
    """Standard error of their mean."""
    return values.double().std(unbiased=len(values) > 1) / math.sqrt(len(values))


def standard_error(rate: float, episodes: int) -> float:
    """Of a success rate, with two successes and two failures added: 0 or all of them leave a doubt, too.

    Source: Agresti & Coull (1998), "Approximate is better than 'exact' for interval estimation of binomial
    proportions".
    """
    total = episodes + 4
    center = (rate * episodes + 2) / total
    return math.sqrt(center * (1 - center) / total)


def paired_difference(first: Bool[Tensor, "m"], second: Bool[Tensor, "m"]) -> tuple[float, float]:
    """How many more of the same episodes the second solves, as a share, and half of its 95 % interval.

    Half an episode is added to each of the four outcomes of a pair before the interval is taken. Source: Agresti & Min
    (2005), "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24.
    """
    total = len(first) + 2
    won = (second & ~first).sum().item() + 0.5
    lost = (first & ~second).sum().item() + 0.5
    variance = (won + lost - (won - lost) ** 2 / total) / total**2
    return (second.float().mean() - first.float().mean()).item(), Z_95 * math.sqrt(variance)


def mean_difference(first: Float[Tensor, "m"], second: Float[Tensor, "m"]) -> tuple[float, float]:
    """Mean of the differences of pairs and half of its 95 % interval, which is normal."""
    gaps = (second - first).double()
    return gaps.mean().item(), Z_95 * mean_error(gaps).item()


@torch.no_grad()
def evaluate(
    policy: Acting,
    env: ChunkEnv,
    *,
    episodes: int,
    seed: int,
    num_inference_steps: int | None = None,
    rebuild_every: int = 1,
) -> Evaluation:
    """Run `episodes` whole episodes without exploration noise; episode i comes from `seed + i` alone.

    In tasks that draw their geometry all envs get other ones after `rebuild_every` rounds, never with 0; then, or with
    more than 1, an episode's geometry depends on the number of envs, too.
    """
    was_training = policy.training
    policy.eval()
    actor = Actor(policy, env, num_inference_steps)
    started = time.perf_counter()
    rounds = []
    for index, first in enumerate(range(seed, seed + episodes, env.num_envs)):
        seeds = list(range(first, first + env.num_envs))
        if rebuild_every and index % rebuild_every == 0:
            env.rebuild(seeds)
        rounds.append(play(actor, env, seeds, wanted=min(env.num_envs, seed + episodes - first)))
    policy.train(was_training)
    result = torch.cat(rounds).cpu()
    return Evaluation(
        seed=torch.arange(seed, seed + episodes),
        success_once=result[:, 0].bool(),
        success_at_end=result[:, 1].bool(),
        return_=result[:, 2],
        length=result[:, 3].long(),
        best_of=policy.extra.get("best_of", 1),
        calls_per_episode=result[:, 4].mean().item(),
        calls_per_second=actor.calls / max(actor.seconds, 1e-9),
        seconds=time.perf_counter() - started,
    )


def play(actor: Actor, env: ChunkEnv, seeds: list[int], wanted: int) -> Float[Tensor, "w 5"]:
    """One episode of every env, the first `wanted` of which count.

    Columns: success once, success at the end, return, length, decisions.
    """
    obs = env.reset(seed=seeds)
    actor.begin(seeds)
    pending = torch.arange(env.num_envs, device=env.device) < wanted
    result = torch.zeros(env.num_envs, 5, device=env.device)
    while pending.any():
        interrupts.check()
        step = env.step_chunk(actor.act(obs, pending))
        result[:, 4] += pending
        stats = step.episode
        columns = (stats.success_once, stats.success_at_end, stats.return_, stats.length)
        # an episode that broke counts as it stood: a policy that breaks its env shall not gain by a new start
        over = step.ended | step.broken
        first_end = pending & over
        result[:, :4] = torch.where(first_end[:, None], torch.stack([c.float() for c in columns], dim=1), result[:, :4])
        pending &= ~over
        obs = step.obs
    return result[:wanted]


class Actor:
    """Decides for a round of episodes, for each as if it were alone.

    An episode is always the same row of a block of the same size, given by its seed, so that products and reductions
    round it alike. Where the simulator is a GPU, which does not repeat to the bit, one call decides for all.
    """

    def __init__(self, policy: Acting, env: ChunkEnv, num_steps: int | None):
        self.policy = policy
        self.num_steps = num_steps
        self.block = None if env.spec.sim_backend == "physx_cuda" else BLOCK
        self.decisions = math.ceil(env.spec.max_episode_steps / policy.spec.act_horizon)
        self.calls = 0
        """decisions of a whole round, each one or several blocks"""
        self.seconds = 0.0

    def begin(self, seeds: list[int]) -> None:
        """Start episodes; all that they will draw is drawn here."""
        shape = (self.decisions, *self.policy.noise_shape)
        drawn = [torch.stack([*islice(noises(seed, shape), self.decisions)]) for seed in seeds]
        self.noise = torch.stack(drawn, dim=1).to(self.policy.device)
        self.decision = 0
        self.first = seeds[0]

    def act(self, obs: Obs, pending: Bool[Tensor, "n"]) -> Float[Tensor, "n e a"]:
        """Actions in env units; 0 in blocks where no episode is pending."""
        before = time.perf_counter()
        inputs = {**obs, "noise": self.noise[self.decision]}
        if self.block is None:
            actions = self._decide(inputs)
        else:
            actions = in_blocks(self._decide, inputs, pending, self.first % self.block, self.block)
        if actions.device.type == "cuda":
            torch.cuda.synchronize(actions.device)
        self.seconds += time.perf_counter() - before
        self.calls += 1
        self.decision += 1
        return actions

    def _decide(self, inputs: Obs) -> Float[Tensor, "b e a"]:
        obs = {name: value for name, value in inputs.items() if name != "noise"}
        return self.policy.act(obs, num_steps=self.num_steps, noise=inputs["noise"])


def noise_generator(seed: int) -> torch.Generator:
    """What an episode's x_0 are drawn from; its start state comes from another stream of the seed."""
    return torch.Generator().manual_seed(derived_seed(seed, Stream.NOISE))


def noises(seed: int, shape: tuple[int, ...]) -> Iterator[Float[Tensor, "..."]]:
    """Standard normal x_0 of one decision of an episode after the other, without end.

    They are drawn as many at a time as `shape` = (decisions of a whole episode, *that of one) says, which decides the
    numbers.
    """
    generator = noise_generator(seed)
    while True:
        yield from torch.randn(shape, generator=generator)


def in_blocks(
    function: Callable[[Obs], Tensor], inputs: Obs, pending: Bool[Tensor, "n"], offset: int, size: int
) -> Tensor:
    """`function` of `size` rows at a time, of which the first input is row `offset`; what is missing is 0."""
    count = len(pending)
    parts = []
    for start in range(0, offset + count, size):
        mine = slice(max(start - offset, 0), min(start + size - offset, count))
        if pending[mine].any():
            place = slice(offset + mine.start - start, offset + mine.stop - start)
            block = {name: placed(rows[mine], place, size) for name, rows in inputs.items()}
            parts.append((mine, function(block)[place]))
    result = parts[0][1].new_zeros(count, *parts[0][1].shape[1:])
    for mine, rows in parts:
        result[mine] = rows
    return result


def placed(rows: Tensor, place: slice, size: int) -> Tensor:
    """A fresh block, which begins at a round address wherever it lies in a batch: products may depend on that, too."""
    block = rows.new_zeros(size, *rows.shape[1:])
    block[place] = rows
    return block
