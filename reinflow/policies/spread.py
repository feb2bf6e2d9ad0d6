"""How far x_0 moves a flow's actions, and whether its centre, x_0 = 0, leads where none of them are.

From scaled x_0 a flow acts about as the mean of what it cloned. Where that has one mode, the mean is the best of it;
between two ways around an obstacle it is a crash. Both spread the actions, so spread alone can't tell noise from modes.
What can: an action from x_0 = 0 that has fewer neighbours among the actions from x_0 ~ N(0, I) than these have
themselves. The centre of a cloud with one mode lies closer to its neighbours than the cloud's other points do, in any
number of dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.policies.base import Policy
from reinflow.types import Obs

DRAWS, STATES_AT_ONCE = 48, 32
NEIGHBOUR = 5
"""a tenth of the draws: a few actions that a flow takes on its way between two modes don't hide the gap"""
LONELY = 1.0
"""distance to the neighbour, per median distance of the draws to theirs; one mode's centre has at most .9"""
LONELY_SHARE = 0.01
"""of the demonstrated states: two ways part in few of them"""


@dataclass(frozen=True)
class Spread:
    """What `action_spread` found."""

    over_x_0: float
    """std of the actions over x_0 ~ N(0, I), as a share of the demonstrated actions' std over all states"""
    lonely: float
    """share of states where x_0 = 0 leads to an action that x_0 ~ N(0, I) hardly ever leads to"""

    def metrics(self) -> dict[str, float]:
        """Both shares under the names that they are logged by."""
        return {"policy/action_spread": self.over_x_0, "policy/lonely_centre": self.lonely}

    def warning(self, initial_noise_scale: float) -> str | None:
        """A sentence where a scale below 1 averages ways that exclude each other."""
        if initial_noise_scale == 1 or self.lonely <= LONELY_SHARE:
            return None
        return (
            f"the demonstrations have several modes: in {self.lonely:.1%} of their states x_0 = 0 leads between them, "
            f"and --initial_noise_scale {initial_noise_scale:g} towards it; compare with --initial_noise_scale 1"
        )


@torch.no_grad()
def action_spread(policy: Policy, obs: Obs, chunk: Float[Tensor, "b h a"]) -> Spread:
    """Of a flow at demonstrated windows; `chunk` is in env units. The noise is its own, and the same every time."""
    cond = policy.encode(obs)
    generator = torch.Generator(policy.device).manual_seed(0)
    noise = torch.randn(len(cond), DRAWS, *policy.spec.chunk_shape, generator=generator, device=policy.device)
    x_0 = torch.cat((torch.zeros_like(noise[:, :1]), noise), 1)
    parts = zip(cond.split(STATES_AT_ONCE), x_0.split(STATES_AT_ONCE), strict=True)
    sampled = [policy.sample(one.repeat_interleave(DRAWS + 1, 0), start.flatten(0, 1)) for one, start in parts]
    executed = torch.cat(sampled).clamp(-1, 1)[:, policy.spec.executed]
    actions = executed.flatten(1).unflatten(0, (len(cond), DRAWS + 1))
    demonstrated = policy.normalize_chunk(chunk)[:, policy.spec.executed].flatten(1)
    centre, drawn = actions.split((1, DRAWS), 1)
    over_x_0 = drawn.var(1).sum(1).mean() / demonstrated.var(0).sum().clamp_min(1e-12)
    lonely = loneliness(drawn, centre) > LONELY
    return Spread(over_x_0.sqrt().item(), lonely.float().mean().item())


def loneliness(
    cloud: Float[Tensor, "b n d"], points: Float[Tensor, "b m d"], neighbour: int = NEIGHBOUR
) -> Float[Tensor, "b m"]:
    """Distance of points to their `neighbour`-th nearest of the cloud, per median distance of the cloud to its own."""
    own = torch.cdist(cloud, cloud).kthvalue(neighbour + 1, dim=2).values  # the nearest one is the point itself
    usual = own.median(1, keepdim=True).values.clamp_min(1e-12)
    return torch.cdist(points, cloud).kthvalue(neighbour, dim=2).values / usual
