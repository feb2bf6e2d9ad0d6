"""Online learning beside a policy that stays frozen: `residual`, `dsrl` and `ibrl`, one small network each.

    residual   a = a_base + bound tanh(net(s, a_base))             Policy Decorator, arXiv:2412.13630
    dsrl       a = the flow's chunk from x_0 = bound tanh(net(s))   arXiv:2506.15799
    ibrl       a = the better of a_base and tanh(net(s)) by min Q   arXiv:2311.02198

The network climbs the mean Q of what it makes, as in TD3 (arXiv:1802.09477), and targets use its moving average.
Differs: all three are deterministic with Gaussian exploration instead of SAC; dsrl takes the gradient through the
frozen flow instead of distilling a Q of x_0; ibrl has no dropout. The exploration of a residual is switched on
gradually: with a probability that grows with the decisions so far, an env does the corrected chunk instead of the base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.critic import QEnsemble
from reinflow.algos.guard import StepGuard
from reinflow.algos.options import DSRLConfig, HelpedConfig, IBRLConfig, ResidualConfig
from reinflow.algos.q_actor import Judge, executed_part
from reinflow.algos.setting import Setting
from reinflow.errors import UserError
from reinflow.policies.base import Policy
from reinflow.policies.ema import EMA
from reinflow.policies.wrapped import ACTOR, Alternative, Helped, Residual, Steered
from reinflow.types import Decision, Obs


class HelpedLearner(Judge):
    """A frozen policy, the network that helps it, and Qs."""

    def __init__(self, policy: Policy, helped: Callable[[QEnsemble], Helped], config: HelpedConfig, setting: Setting):
        """`helped` makes the policy with a network beside it, given the target Qs that may choose between both."""
        super().__init__(policy.requires_grad_(False), config.q, setting)
        self.config = config
        self.helped, self.acting = helped(self.critic.target_q), helped(self.critic.target_q).eval()
        self.ema = EMA(self.helped.net, decay=1 - config.actor_tau, warm_up=False)
        self.acting.net = self.ema.module
        self.optimizer = torch.optim.Adam(self.helped.net.parameters(), lr=config.lr, fused=True)
        self.guard = StepGuard()
        self.decisions = 0

    @property
    def average(self) -> Policy:
        """The policy, which does not move."""
        return self.policy

    @property
    def evaluated(self) -> Helped:
        """The policy with the averaged network."""
        return self.acting

    def noise(self, rows: int, generator: torch.Generator | None = None) -> Float[Tensor, "b h a"]:
        """Standard normal noise of the policy."""
        return torch.randn(rows, *self.helped.noise_shape, generator=generator, device=self.policy.device)

    @torch.no_grad()
    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """The helped chunk with noise, or the policy's own while the network is being switched on."""
        cond = self.policy.encode(obs)
        noise = self.noise(len(cond), generator)
        chunk = self.helped.chunk(cond, noise)
        extra = torch.randn(chunk.shape, generator=generator, device=chunk.device)
        chunk = chunk + self.config.explore_std * extra
        on = torch.rand(len(cond), generator=generator, device=chunk.device) < self.share_on()
        self.decisions += len(cond)
        if self.config.switch_on and not on.all():
            base = self.policy.sample(cond, self.policy.start_from(noise))
            chunk = torch.where(on[:, None, None], chunk, base)
        return self.decided(chunk)

    def share_on(self) -> float:
        """Of the envs, how many do what the network says by now."""
        return min(self.decisions / self.config.switch_on, 1.0) if self.config.switch_on else 1.0

    def next_action(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b ea"]:
        """The executed part of what is evaluated."""
        return executed_part(self.policy, self.acting.chunk(cond, self.noise(len(cond))))

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step of the Qs and one of the network."""
        with torch.no_grad():
            cond = self.policy.encode(batch.obs)
            action = executed_part(self.policy, self.policy.normalize_chunk(batch.chunk))
        metrics = self.critic.update(cond, action, self.target(batch))
        q = self.critic.judge(cond, executed_part(self.policy, self.proposed(cond))).mean(0)
        loss = -q.mean() / self.critic.unit
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.helped.net.parameters(), self.config.max_grad_norm)
        self.guard.step(loss, [(self.optimizer, norm)])
        self.ema.update(self.helped.net)
        skipped = {f"losses/{name}": value for name, value in self.guard.metrics().items()}
        return metrics | {"losses/actor_q": q.detach().mean(), "losses/grad_norm": norm, **skipped}

    def proposed(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b h a"]:
        """What the network makes, whether or not it would be done."""
        if isinstance(self.helped, Alternative):
            return self.helped.said(cond)
        return self.helped.chunk(cond, self.noise(len(cond)))

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The Qs and the averaged network."""
        return super().parts() | {ACTOR: self.ema.module.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """Of the frozen policy, network, average, optimiser and Qs."""
        return {
            "policy": self.policy.state_dict(),
            "net": self.helped.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic": self.critic.training_state(),
            "decisions": self.decisions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.helped.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critic.load_training_state(state["critic"])
        self.decisions = state["decisions"]
        self.guard.reset()


def residual(policy: Policy, config: ResidualConfig, setting: Setting) -> HelpedLearner:
    """Corrections of any frozen policy."""
    return HelpedLearner(policy, lambda q: Residual(policy, config.bound, config.actor_hidden_dim), config, setting)


def dsrl(policy: Policy, config: DSRLConfig, setting: Setting) -> HelpedLearner:
    """The x_0 of a frozen flow. UserError for a policy on which x_0 has no effect."""
    cond = torch.zeros(2, policy.spec.cond_dim, device=policy.device)
    noise = torch.zeros(2, *policy.spec.chunk_shape, device=policy.device)
    with torch.no_grad():
        if torch.equal(policy.sample(cond, noise), policy.sample(cond, noise + 1)):
            raise UserError(
                f"--algorithm dsrl chooses x_0, which --family {policy.spec.family} has none of: take a flow"
            )
    return HelpedLearner(policy, lambda q: Steered(policy, config.bound, config.actor_hidden_dim), config, setting)


def ibrl(policy: Policy, config: IBRLConfig, setting: Setting) -> HelpedLearner:
    """A second actor, and the choice between it and a frozen policy by the learner's target Qs."""
    return HelpedLearner(
        policy, lambda q: Alternative(policy, config.bound, config.actor_hidden_dim, q), config, setting
    )
