"""The likelihood of what a flow draws, by the change of variables (FFJORD, Grathwohl et al., arXiv:1810.01367).

    log p(x_1) = log N(x_0; 0, scale^2) - integral of tr dv/dx,    along x' = v(x, t) from x_1 at t = 1 back to x_0

So PPO can compare two policies by what they do, without noise in their steps and without their chains. The path back
is that of the network that is judged, by the midpoint rule with as many steps as the policy takes. Both policies are
judged by the same steps and the same probes, so what these neglect is mostly gone from their ratio.

The trace is exact, or Hutchinson's: the mean of e . (dv/dx e) over probes e of random signs. Which probes of a bank a
chunk gets is read off the bits of its numbers: at random as far as a network can tell, and the same each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reinflow.errors import UserError
from reinflow.policies.flow import FlowPolicy
from reinflow.policies.transition import Transition, log_normal
from reinflow.types import Kernel

BANK = 256
"""sets of probes"""
LogDensity = Callable[[Tensor], Tensor]
"""(b h a) -> (b)"""


@dataclass(frozen=True)
class FlowDensity(Transition):
    """p(x_1) of a chain of one step, which takes x_0 to its end; not that of some of its numbers."""

    density: LogDensity | None = None

    comparable: ClassVar[bool] = False

    @classmethod
    def stacked(cls, steps: Sequence[Transition]) -> Transition:
        """The one step with the steps after the rows."""
        (step,) = steps
        assert isinstance(step, FlowDensity)
        return cls(step.means.unsqueeze(1), step.stds.unsqueeze(1), density=step.density)

    def draw(self, x: Float[Tensor, "b h a"], eps: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """Where x_0 leads; nothing is added."""
        return self.means

    def log_prob(self, x: Float[Tensor, "b 1 h a"], scored: Bool[Tensor, "1 h a"]) -> Float[Tensor, "b"]:
        """Of whole chunks, whatever is `scored`."""
        assert self.density is not None
        return self.density(x[:, 0])

    def step_log_probs(self, x: Float[Tensor, "b 1 h a"], scored: Bool[Tensor, "1 h a"]) -> Float[Tensor, "b 1"]:
        """The same, as that of one step."""
        return self.log_prob(x, scored).unsqueeze(1)

    def kl(self, new: Transition, scored: Bool[Tensor, "k h a"]) -> Float[Tensor, "b"]:
        """ValueError: a flow's has no closed form."""
        raise ValueError("the divergence of two flows has no closed form: estimate it from the log-probabilities")


class FlowLikelihood(nn.Module):
    """Stochastic without noise of its own: what is random is x_0, and its chain is x_0 and x_1."""

    num_steps = 1
    probes: Tensor

    def __init__(self, policy: FlowPolicy, num_steps: int, probes: int):
        """`probes` per trace, 0 for the exact one. UserError for a policy that is no flow with a spread x_0."""
        super().__init__()
        spec = policy.spec
        if not getattr(policy, "integrable", False):
            raise UserError(
                f"--likelihood exact needs a policy that follows a velocity, and --family {spec.family} does not: "
                "leave it out"
            )
        if spec.initial_noise_scale == 0:
            raise UserError("--likelihood exact needs a random x_0: pass --initial_noise_scale 1")
        if spec.ft_denoising_steps is not None:
            raise UserError("--likelihood exact judges whole chains: leave --ft_denoising_steps out")
        self.policy = policy
        self.all_steps = num_steps
        numbers = math.prod(spec.chunk_shape)
        signs = torch.randint(2, (BANK, probes, *spec.chunk_shape)) * 2.0 - 1
        self.register_buffer("probes", signs if probes else torch.eye(numbers).view(1, numbers, *spec.chunk_shape))
        self.exact = probes == 0

    def start(self, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None) -> Float[Tensor, "b h a"]:
        """x_0"""
        return self.policy.initial_noise(len(cond), generator)

    def kernel(self, cond: Float[Tensor, "b z"]) -> Kernel:
        """The one step: where `sample` leads from x_0."""
        return lambda k, x: self.law(self.policy.sample(cond, x, self.all_steps), cond)

    def steps(self, x: Float[Tensor, "b 1 h a"], cond: Float[Tensor, "b z"]) -> Transition:
        """The one step, to judge ends by; where these x_0 lead is not computed."""
        return self.law(x, cond)

    def law(self, means: Float[Tensor, "b *k h a"], cond: Float[Tensor, "b z"]) -> FlowDensity:
        """With the std of x_0, the only noise there is."""
        stds = torch.full_like(means, self.policy.spec.initial_noise_scale)
        return FlowDensity(means, stds, density=lambda x: self.log_density(x, cond))

    def log_density(self, x_1: Float[Tensor, "b h a"], cond: Float[Tensor, "b z"]) -> Float[Tensor, "b"]:
        """log p(x_1), by the midpoint rule."""
        probes, d, x = self.chosen_probes(x_1), 1 / self.all_steps, x_1
        traces = torch.zeros(len(x_1), device=x_1.device)
        for k in reversed(range(self.all_steps)):
            middle = x - d / 2 * self.velocity(x, (k + 1) * d, cond)
            v, trace = self.velocity_and_trace(middle, (k + 0.5) * d, cond, probes)
            x, traces = x - d * v, traces + d * trace
        scale = torch.tensor(self.policy.spec.initial_noise_scale, device=x.device)
        return log_normal(x, torch.zeros_like(x), scale).sum((1, 2)) - traces

    def velocity(self, x: Float[Tensor, "b h a"], t: float, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b h a"]:
        """v(x, t)"""
        return self.policy.velocity_now(x, torch.full((len(x),), t, device=x.device), cond)

    def velocity_and_trace(
        self, x: Float[Tensor, "b h a"], t: float, cond: Float[Tensor, "b z"], probes: Float[Tensor, "p b h a"]
    ) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "b"]]:
        """v and tr dv/dx, both differentiable by the network's weights."""

        def product(probe: Tensor) -> Tensor:
            return torch.func.jvp(lambda x: self.velocity(x, t, cond), (x,), (probe,))[1]

        shares = (probes * torch.func.vmap(product)(probes)).sum((2, 3))
        return self.velocity(x, t, cond), shares.sum(0) if self.exact else shares.mean(0)

    def chosen_probes(self, x_1: Float[Tensor, "b h a"]) -> Float[Tensor, "p b h a"]:
        """Of every row; unit vectors for the exact trace."""
        bits = x_1.detach().float().contiguous().flatten(1).view(torch.int32).long()
        return self.probes[bits.sum(1) % len(self.probes)].transpose(0, 1)

    def set_noise_bounds_(self, min_std: float, max_std: float) -> None:
        """Nothing: there is no exploration noise."""

    def velocity_parameters(self) -> Iterator[nn.Parameter]:
        """All that it trains."""
        return self.policy.net.parameters()

    def noise_parameters(self) -> Iterator[nn.Parameter]:
        """None."""
        return iter(())
