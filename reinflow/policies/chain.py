"""The denoising chain as a Markov decision process: sampling it, scoring it and comparing two of its distributions.

Every function takes any `Stochastic`, so PPO never learns which family it trains.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.types import Chain, Stochastic

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


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
    x = x_0
    states, means, stds = [x], [], []
    for k, eps in enumerate(noise):
        mean, std = kernel(k, x)
        x = mean + std * eps
        states.append(x)
        means.append(mean)
        stds.append(std)
    drawn = torch.stack(states, 1), torch.stack(means, 1), torch.stack(stds, 1)
    return Chain(*drawn, log_prob=chain_log_prob(*drawn, scored))


def chain_moments(
    actor: Stochastic, states: Float[Tensor, "b k1 h a"], cond: Float[Tensor, "b z"]
) -> tuple[Float[Tensor, "b k h a"], Float[Tensor, "b k h a"]]:
    """Means and stds of every step of given chains, K folded into the batch: one forward of b*K rows."""
    return actor.steps(states[:, :-1], cond)


def chain_log_prob(
    states: Float[Tensor, "b k1 h a"],
    means: Float[Tensor, "b k h a"],
    stds: Float[Tensor, "b k h a"],
    scored: Bool[Tensor, "k h a"],
) -> Float[Tensor, "b"]:
    """Sum over scored dims of log N(x_{k+1}; mean_k, std_k)."""
    z = (states[:, 1:] - means) / stds
    log_density = -0.5 * z.square() - stds.log() - LOG_SQRT_2PI
    return scored_sum(log_density, scored)


def joint_kl(
    old_means: Float[Tensor, "b k h a"],
    old_stds: Float[Tensor, "b k h a"],
    means: Float[Tensor, "b k h a"],
    stds: Float[Tensor, "b k h a"],
    scored: Bool[Tensor, "k h a"],
) -> Float[Tensor, "b"]:
    """KL(old || new) of the scored dims along old chains, in nats, from the closed form of the Gaussians."""
    ratio = old_stds / stds
    kl = 0.5 * (ratio.square() + ((old_means - means) / stds).square() - 1) - ratio.log()
    return scored_sum(kl, scored)


def chain_entropy(stds: Float[Tensor, "b k h a"], scored: Bool[Tensor, "k h a"]) -> Float[Tensor, "b"]:
    """Differential entropy per scored dim, mean, in nats."""
    entropy = stds.log() + 0.5 + LOG_SQRT_2PI
    return scored_sum(entropy, scored) / scored.sum()


def scored_sum(values: Float[Tensor, "b k h a"], scored: Bool[Tensor, "k h a"]) -> Float[Tensor, "b"]:
    return (values * scored).sum((1, 2, 3))
