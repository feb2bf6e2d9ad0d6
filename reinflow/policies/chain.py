"""The denoising chain as a Markov decision process: sampling it, scoring it and comparing two of its distributions.

Every function takes any `Stochastic`, so PPO never learns which family it trains.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.policies.transition import LOG_SQRT_2PI, Transition, scored_sum
from reinflow.types import Centres, Chain, Stochastic


def scored_dims(
    num_steps: int,
    pred_horizon: int,
    executed: slice,
    varies: Bool[Tensor, "a"],
    mode: Literal["feeds", "executed", "all"] = "feeds",
) -> Bool[Tensor, "k h a"]:
    """Which numbers of which step count in the log-probability.

    `feeds`: all positions until the last step, where only the executed ones reach the env; `executed`: those alone,
    always. Both leave out action dims that do not vary: what the env does not feel would be pure noise in the ratio.
    `all`: everything.
    """
    scored = torch.ones(num_steps, pred_horizon, len(varies), dtype=torch.bool, device=varies.device)
    if mode == "all":
        return scored
    unexecuted = torch.ones(pred_horizon, dtype=torch.bool, device=varies.device)
    unexecuted[executed] = False
    steps = slice(None) if mode == "executed" else slice(-1, None)
    scored[steps, unexecuted] = False
    return scored & varies


def sample_chain(
    actor: Stochastic,
    cond: Float[Tensor, "b z"],
    scored: Bool[Tensor, "k h a"],
    generator: torch.Generator | None = None,
) -> Chain:
    """Draw a chain; its log-probability comes from the drawn noise, without a second pass."""
    return denoise(actor, cond, *draws(actor, cond, generator), scored)


def draws(
    actor: Stochastic, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "k b h a"]]:
    """All that is random in a chain: x_0 and the noise of its steps."""
    x_0 = actor.start(cond, generator)
    return x_0, torch.randn((actor.num_steps, *x_0.shape), generator=generator, device=x_0.device, dtype=x_0.dtype)


def denoise(
    actor: Stochastic,
    cond: Float[Tensor, "b z"],
    x_0: Float[Tensor, "b h a"],
    noise: Float[Tensor, "k b h a"],
    scored: Bool[Tensor, "k h a"],
) -> Chain:
    """The chain that standard normal `noise` draws from x_0: nothing is random here, so it can be replayed."""
    kernel = actor.kernel(cond)
    states, steps = [x_0], []
    for k, eps in enumerate(noise):
        steps.append(kernel(k, states[-1]).in_float32())
        states.append(steps[-1].draw(states[-1], eps))
    drawn, law = torch.stack(states, 1), Transition.stacked(steps)
    return Chain(drawn, law.centres, law.stds, log_prob=law.log_prob(drawn[:, 1:], scored))


def chain_moments(
    actor: Stochastic, states: Float[Tensor, "b k1 h a"], cond: Float[Tensor, "b z"]
) -> tuple[Centres, Float[Tensor, "b k h a"]]:
    """Means and stds of every step of given chains, K folded into the batch: one forward of b*K rows."""
    law = actor.steps(states[:, :-1], cond).in_float32()
    return law.centres, law.stds


def chain_log_prob(
    states: Float[Tensor, "b k1 h a"],
    means: Centres,
    stds: Float[Tensor, "b k h a"],
    scored: Bool[Tensor, "k h a"],
) -> Float[Tensor, "b"]:
    """Sum over scored dims of log N(x_{k+1}; mean_k, std_k), or of a mixture's log-density."""
    return Transition.of(means, stds).log_prob(states[:, 1:], scored)


def joint_kl(
    old_means: Centres,
    old_stds: Float[Tensor, "b k h a"],
    means: Centres,
    stds: Float[Tensor, "b k h a"],
    scored: Bool[Tensor, "k h a"],
) -> Float[Tensor, "b"]:
    """KL(old || new) of the scored dims along old chains, in nats, in closed form."""
    return Transition.of(old_means, old_stds).kl(Transition.of(means, stds), scored)


def chain_entropy(stds: Float[Tensor, "b k h a"], scored: Bool[Tensor, "k h a"]) -> Float[Tensor, "b"]:
    """Differential entropy per scored dim, mean, in nats; of a mixture once its modes are known, which is less."""
    return scored_sum(stds.log() + 0.5 + LOG_SQRT_2PI, scored) / scored.sum()
