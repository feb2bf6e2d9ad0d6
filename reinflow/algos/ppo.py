"""PPO (Schulman et al., arXiv:1707.06347) over a denoising chain (DPPO, arXiv:2409.00588; ReinFlow, arXiv:2505.22094).

Differs: the log-ratio of hundreds of Gaussians is scaled by their number to the power alpha, KL is the closed form in
joint nats, and the critic has an optimiser of its own, so that warm-up leaves the actor's optimiser untouched.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nets.critic import PrivilegedValueNetwork
from reinflow.algos.actor_critic import ActorCritic
from reinflow.algos.advantages import explained_variance, mean_over, normalized
from reinflow.algos.anchor import Anchor
from reinflow.algos.config import PPOConfig
from reinflow.algos.guard import StepGuard
from reinflow.algos.rollout import RolloutBuffer, Rows
from reinflow.policies.chain import chain_entropy, joint_kl
from reinflow.policies.transition import Transition
from reinflow.runtime import distributed, interrupts
from reinflow.runtime.acceleration import replayed
from reinflow.runtime.trees import mapped

ALPHA = {"sum": 0.0, "sqrt": 0.5, "mean": 1.0}
CLIP_GROWTH = 3.0
"""exponent with which clip ranges grow from step to step, DPPO's"""
MAX_LOG_RATIO = 20.0
"""guard against overflow of exp alone; far outside of any clip range"""


def scaled_log_ratio(
    log_prob: Float[Tensor, "b *k"], old_log_prob: Float[Tensor, "b *k"], num_scored: int | Tensor, reduction: str
) -> Float[Tensor, "b *k"]:
    """(log pi_new - log pi_old) / D**alpha."""
    return (log_prob - old_log_prob) / num_scored ** ALPHA[reduction]


def clipped_surrogate(
    ratio: Float[Tensor, "b *k"],
    advantages: Float[Tensor, "b *k"],
    clip_ratio: float | Float[Tensor, "k"],
    valid: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, ""]:
    """PPO's pessimistic objective, as a loss (eq. 7), over the rows where `valid` is 1 and the steps that they have."""
    bounds: Any = (1 - clip_ratio, 1 + clip_ratio)  # numbers, or one of each per step
    clipped = ratio.clamp(*bounds)
    return -mean_over(of_rows(torch.min(ratio * advantages, clipped * advantages)), valid)


def of_rows(values: Float[Tensor, "b *k"]) -> Float[Tensor, "b"]:
    """The mean over steps, where there are any."""
    return values if values.dim() == 1 else values.mean(1)


@dataclass
class Compared:
    """How much more likely the policy makes what was done than the one that did it, by row or by row and step."""

    ratio: Float[Tensor, "b *k"]
    advantages: Float[Tensor, "b *k"]
    clip_ratio: float | Float[Tensor, "k"]
    difference: Float[Tensor, "b"]
    """of the chains' log-probabilities"""


def compared_chains(agent: ActorCritic, config: PPOConfig, law: Transition, rows: Rows) -> Compared:
    """Whole chains."""
    log_prob, old_log_prob = law.log_prob(rows["actions"][:, 1:], agent.scored), rows["log_probs"]
    log_ratio = scaled_log_ratio(log_prob, old_log_prob, agent.num_scored, config.logprob_reduction)
    ratio = log_ratio.clamp_max(MAX_LOG_RATIO).exp()
    return Compared(ratio, rows["advantages"], config.clip_ratio, log_prob - old_log_prob)


def compared_steps(agent: ActorCritic, config: PPOConfig, law: Transition, rows: Rows) -> Compared:
    """Every step by itself (DPPO, eq. 5.1), D being that of a step. ValueError without the old `means` and `stds`."""
    if "means" not in rows or "stds" not in rows:
        raise ValueError("ratios of single steps need the means and stds of the policy that acted")
    drawn, old = rows["actions"][:, 1:], Transition.of(rows["means"], rows["stds"])
    new, before = law.step_log_probs(drawn, agent.scored), old.step_log_probs(drawn, agent.scored)
    log_ratio = scaled_log_ratio(new, before, agent.scored.sum((1, 2)).clamp_min(1), config.logprob_reduction)
    discounts, clip_ratios = step_weights(config, log_ratio.shape[1], log_ratio.device)
    return Compared(
        log_ratio.clamp_max(MAX_LOG_RATIO).exp(),
        rows["advantages"][:, None] * discounts,
        clip_ratios,
        (new - before).sum(1),
    )


def step_weights(
    config: PPOConfig, num_steps: int, device: torch.device
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """Factors of the advantage and clip ranges; with s = k / (K - 1), which is 1 where there is one step,

    clip = base + (clip_ratio - base) (e^(3 s) - 1) / (e^3 - 1)
    """
    k = torch.arange(num_steps, device=device)
    s = k / (num_steps - 1) if num_steps > 1 else torch.ones_like(k)
    base = config.clip_ratio if config.clip_ratio_base is None else config.clip_ratio_base
    clip_ratios = base + (config.clip_ratio - base) * torch.expm1(CLIP_GROWTH * s) / math.expm1(CLIP_GROWTH)
    return config.denoising_discount ** (num_steps - 1 - k), clip_ratios


def value_loss(
    agent: ActorCritic,
    seen: Float[Tensor, "b p"],
    returns: Float[Tensor, "b"],
    valid: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, ""]:
    """Squared error, in squared units of the returns; it moves the critic alone."""
    return mean_over((agent.critic(seen.detach()) - returns).square(), valid)


def weighted_value_loss(agent: ActorCritic, loss: Float[Tensor, ""], value_coef: float) -> Float[Tensor, ""]:
    """Its part of the loss that is minimised, whatever the unit of the rewards."""
    return value_coef * loss / agent.critic.unit.square()


def judged(agent: ActorCritic, states: Float[Tensor, "b k1 h a"], cond: Float[Tensor, "b z"]) -> Transition:
    """The law of every step of these chains, from networks in the agent's precision."""
    with agent.precision.networks(cond.device):
        law = agent.actor.steps(states[:, :-1], cond)
    return law.in_float32()


def ppo_loss(
    agent: ActorCritic, config: PPOConfig, law: Transition, cond: Float[Tensor, "b z"], rows: Rows
) -> dict[str, Tensor]:
    """`loss` and its parts, over those rows of a rollout whose `valid` is 1 (all where they have none).

    `law` is what the policy now makes of the rows' chains. `approx_kl` is in joint nats; without the old `means` and
    `stds` it is estimated from the log-ratios.
    """
    valid = rows.get("valid")
    found = (compared_chains if config.ratio_of == "chain" else compared_steps)(agent, config, law, rows)
    policy_loss = clipped_surrogate(found.ratio, found.advantages, found.clip_ratio, valid)
    critic_loss = value_loss(agent, rows.get("critic_obs", cond), rows["returns"], valid)
    entropy = mean_over(chain_entropy(law.stds, agent.scored), valid)
    loss = policy_loss + weighted_value_loss(agent, critic_loss, config.value_coef) - config.entropy_coef * entropy
    with torch.no_grad():
        if law.comparable and "means" in rows and "stds" in rows:
            kl = joint_kl(rows["means"], rows["stds"], law.centres, law.stds, agent.scored)
        else:
            kl = found.difference.exp() - 1 - found.difference
        deviation = (found.ratio - 1).abs()
        clipped = of_rows((deviation > found.clip_ratio).float())
        if valid is not None:
            deviation = deviation * valid.view(-1, *(1,) * (deviation.dim() - 1))
    return {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": critic_loss,
        "entropy_loss": -entropy,
        "approx_kl": mean_over(kl, valid),
        "clip_fraction": mean_over(clipped, valid),
        "ratio_deviation": deviation.max(),
    }


class PPO:
    """Optimises an `ActorCritic` on one rollout at a time."""

    def __init__(self, agent: ActorCritic, config: PPOConfig):
        self.agent = agent
        self.config = config
        self.velocity_parameters = list(agent.actor.velocity_parameters())
        if agent.trains_encoder:
            self.velocity_parameters += list(agent.policy.encoder.parameters())
        self.noise_parameters = list(agent.actor.noise_parameters())
        self.critic_parameters = list(agent.critic.parameters())
        self.anchor = Anchor(agent.policy, config.w2_coef, config.w2_decay_steps) if config.w2_coef else None
        groups = [
            {"params": self.velocity_parameters, "lr": config.lr},
            {"params": self.noise_parameters, "lr": config.lr_noise},
        ]
        kind: dict[str, Any] = {"eps": 1e-5, "fused": True, "capturable": agent.policy.device.type == "cuda"}
        self.actor_optimizer = torch.optim.Adam(groups, **kind)
        self.critic_optimizer = torch.optim.Adam(self.critic_parameters, lr=config.lr_critic, **kind)
        self.guard = StepGuard()
        self.parameters = self.velocity_parameters + self.noise_parameters + self.critic_parameters
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        """A gradient step is one graph; processes meet in the middle of it, so there only the gradients are."""
        wanted, device = self.agent.acceleration.cuda_graphs, self.agent.policy.device
        alone = not distributed.active()
        self.gradients = replayed(self.add_gradients, wanted and not alone, device)
        self.critic_gradients = replayed(self.add_critic_gradients, wanted and not alone, device)
        self.step = replayed(self.descend, wanted and alone, device)
        self.step_critic = replayed(self.descend_critic, wanted and alone, device)
        self.score = replayed(self.scored, wanted, device)

    def update(
        self, buffer: RolloutBuffer, generator: torch.Generator | None = None, *, critic_only: bool = False
    ) -> dict[str, Tensor]:
        """All epochs over `buffer`; returns metrics as tensors. With `critic_only` the actor is not even evaluated."""
        data, kept = buffer.data, buffer.kept()
        if isinstance(self.agent.critic, PrivilegedValueNetwork):
            self.agent.critic.fit_once_(data["critic_obs"], kept, distributed.row_moments)
        metrics = {
            "explained_variance": explained_variance(data["value"], data["returns"], kept),
            "advantage_std": distributed.moments(data["advantages"], kept)[1],
            "value_mean": mean_over(data["value"], kept),
            "value_scale": self.agent.critic.scale.clone(),
            "action_clip_fraction": clipped_share(data["actions"][:, :, -1], kept),
        }
        if critic_only:
            metrics |= mean_of(self.critic_epochs(buffer, generator, self.config.ppo_epochs))
            return metrics | self.guard.metrics()
        if "stds" in data:
            metrics |= std_percentiles(data["stds"], kept)
        if self.config.normalize_advantages:
            data["advantages"] = normalized(data["advantages"], data["valid"])
        steps: list[dict[str, Tensor]] = []
        epochs = 0
        for _ in range(self.config.ppo_epochs):
            batches = buffer.shuffled(self.config.minibatch_size, generator)
            if not epochs and self.agent.precision.rounds(buffer.device):
                self.rescore_(buffer, batches)
            epoch = [self.step(rows) for rows in interrupts.between(buffer.gathered(batches, overwrite=True))]
            steps += epoch
            epochs += 1
            if self.config.target_kl is not None and self.mean_kl(epoch) > self.config.target_kl:
                break
        metrics |= mean_of(steps + self.critic_epochs(buffer, generator, self.config.ppo_epochs - epochs))
        metrics["ratio_deviation"] = distributed.largest(steps[0]["ratio_deviation"])
        metrics["final_kl"] = mean_of(epoch)["approx_kl"]
        metrics["epochs"] = torch.tensor(float(epochs))
        metrics |= self.guard.metrics()
        self.zero_gradients()
        return metrics

    def mean_kl(self, epoch: list[dict[str, Tensor]]) -> Float[Tensor, ""]:
        """Of all processes, so that they stop together."""
        return distributed.mean(mean_of(epoch)["approx_kl"])

    @torch.no_grad()
    def rescore_(self, buffer: RolloutBuffer, batches: Iterable[Int[Tensor, "b"]]) -> None:
        """Let the update's own kernels say what the old policy gave to the rollout, minibatch by minibatch.

        Rounded products depend on the number of rows, and drawing has others than scoring: both sides of the ratio have
        to come from the same ones.
        """
        for index, rows in zip(batches, buffer.gathered(batches, overwrite=True), strict=True):
            buffer.replace_(index, self.score(rows))

    def scored(self, rows: Rows) -> Rows:
        """`log_probs`, `means` and `stds` of a minibatch's chains by the kernels of its gradient step."""
        parts = []
        for piece in self.pieces(rows):
            cond = self.agent.condition(piece["obs"])
            law = judged(self.agent, piece["actions"], cond)
            log_probs = law.log_prob(piece["actions"][:, 1:], self.agent.scored)
            parts.append({"log_probs": log_probs, "means": law.centres, "stds": law.stds})
        return {name: joined([part[name] for part in parts]) for name in parts[0]}

    def pieces(self, rows: Rows) -> Iterator[Rows]:
        """A minibatch in micro-batches, or whole."""
        count = len(rows["log_probs"])
        size = min(self.config.micro_batch_size or count, count)
        if size == count:
            yield rows
            return
        for start in range(0, count, size):
            yield {name: mapped(entry, itemgetter(slice(start, start + size))) for name, entry in rows.items()}

    def descend(self, rows: Rows) -> dict[str, Tensor]:
        """A gradient step of actor and critic on a minibatch, on the device alone; `step` may replay it as a graph."""
        losses = self.gradients(rows)
        loss = losses.pop("loss")
        distributed.average_gradients_(self.parameters)
        limit = self.config.max_grad_norm
        noise_gradients = [p.grad for p in self.noise_parameters if p.grad is not None]
        losses["grad_norm_noise"] = nn.utils.get_total_norm(noise_gradients)
        losses["grad_norm_actor"] = nn.utils.clip_grad_norm_(self.velocity_parameters + self.noise_parameters, limit)
        losses["grad_norm_critic"] = nn.utils.clip_grad_norm_(self.critic_parameters, limit)
        self.guard.step(
            loss,
            [
                (self.actor_optimizer, losses["grad_norm_actor"]),
                (self.critic_optimizer, losses["grad_norm_critic"]),
            ],
        )
        return losses

    def zero_gradients(self) -> None:
        """In place where graphs write gradients that other processes' are added to, else by forgetting them."""
        for optimizer in (self.actor_optimizer, self.critic_optimizer):
            optimizer.zero_grad(set_to_none=not distributed.active())

    def add_gradients(self, rows: Rows) -> dict[str, Tensor]:
        """Gradients of the loss and its parts, over micro-batches whose weights are their shares of the valid rows."""
        self.zero_gradients()
        pieces = list(self.pieces(rows))
        parts: list[dict[str, Tensor]] = []
        with self.agent.precision.products():
            for piece in pieces:
                cond = self.agent.condition(piece["obs"])
                law = judged(self.agent, piece["actions"], cond)
                losses = ppo_loss(self.agent, self.config, law, cond, piece)
                self.add_distance_(losses, cond, piece)
                if len(pieces) > 1:
                    share = piece["valid"].sum() / rows["valid"].sum().clamp_min(1)
                    losses = {name: v if name == "ratio_deviation" else v * share for name, v in losses.items()}
                losses["loss"].backward()
                parts.append(detached(losses))
        if len(pieces) == 1:
            return parts[0]
        columns = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        return {name: column.amax() if name == "ratio_deviation" else column.sum() for name, column in columns.items()}

    def add_distance_(self, losses: dict[str, Tensor], cond: Float[Tensor, "b z"], rows: Rows) -> None:
        """Count the distance to the policy before fine-tuning, where there is an anchor."""
        if self.anchor is not None:
            x_0, steps = rows["actions"][:, 0], self.agent.actor.num_steps
            distance = self.anchor.distance(self.agent.policy, cond, rows["obs"], x_0, steps)
            losses["w2"] = mean_over(distance, rows.get("valid"))
            losses["loss"] = losses["loss"] + self.anchor.weight * losses["w2"]

    def critic_epochs(
        self, buffer: RolloutBuffer, generator: torch.Generator | None, epochs: int
    ) -> list[dict[str, Tensor]]:
        """The same passes for the value network alone."""
        steps = []
        names = ("critic_obs" if "critic_obs" in buffer.data else "obs", "returns", "valid")
        for _ in range(epochs):
            minibatches = buffer.minibatches(self.config.minibatch_size, generator, names, overwrite=True)
            for rows in interrupts.between(minibatches):
                steps.append(self.step_critic(*(rows[name] for name in names)))
        return steps

    def descend_critic(self, seen: Tensor, returns: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """A gradient step of the critic alone, on the device alone; `step_critic` may replay it as a graph."""
        loss = self.critic_gradients(seen, returns, valid)
        distributed.average_gradients_(self.critic_parameters)
        norm = nn.utils.clip_grad_norm_(self.critic_parameters, self.config.max_grad_norm)
        self.guard.step(loss, [(self.critic_optimizer, norm)])
        return {"value_loss": loss, "grad_norm_critic": norm}

    def add_critic_gradients(self, seen: Tensor, returns: Tensor, valid: Tensor) -> Float[Tensor, ""]:
        """Gradients of the value loss, which it returns."""
        self.zero_gradients()
        with self.agent.precision.products():
            loss = value_loss(self.agent, seen, returns, valid)
            weighted_value_loss(self.agent, loss, self.config.value_coef).backward()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Both optimisers, their tensors live, and the policy before fine-tuning where its distance counts.

        The agent's weights are saved elsewhere.
        """
        anchor = {} if self.anchor is None else {"anchor": self.anchor.state_dict()}
        return {"actor": self.actor_optimizer.state_dict(), "critic": self.critic_optimizer.state_dict(), **anchor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; captured graphs and the count of skipped steps are dropped."""
        self.actor_optimizer.load_state_dict(state["actor"])
        self.critic_optimizer.load_state_dict(state["critic"])
        if self.anchor is not None:
            self.anchor.load_state_dict(state["anchor"])
        self.guard.reset()
        self._forget_graphs()  # the moments lie elsewhere now


def detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without their gradients' history, as metrics are kept."""
    return {name: value.detach() for name, value in values.items()}


def joined(parts: list[Any]) -> Any:
    """Rows of tensors, or of dicts of them, one after the other."""
    if isinstance(parts[0], dict):
        return {name: joined([part[name] for part in parts]) for name in parts[0]}
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def clipped_share(chunks: Float[Tensor, "r n h a"], kept: Bool[Tensor, "r n"]) -> Float[Tensor, ""]:
    """Share of the numbers of those chunks that are beyond -1 and 1."""
    return mean_over((chunks.abs() > 1).float().mean((-1, -2)), kept)


def std_percentiles(
    stds: Float[Tensor, "r n ..."], kept: Bool[Tensor, "r n"], most: int = 100_000
) -> dict[str, Tensor]:
    """5th, 50th and 95th percentile of those stds, over an even selection of at most about `most` of all values."""
    every = max(stds.numel() // most, 1)
    chosen = kept.view(*kept.shape, *(1,) * (stds.dim() - 2)).expand_as(stds).flatten()[::every]
    values = torch.where(chosen, stds.flatten()[::every], torch.inf).sort().values
    last = (chosen.sum() - 1).clamp_min(0)
    names = {"noise_std_p05": 0.05, "noise_std_p50": 0.5, "noise_std_p95": 0.95}
    return {name: between(values, level * last) for name, level in names.items()}


def between(values: Float[Tensor, "n"], place: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The value at a place between two of them, linearly; no number of it leaves the device."""
    low, high = place.floor().long().view(1), place.ceil().long().view(1)
    return values.index_select(0, low).lerp(values.index_select(0, high), place.frac().to(values.dtype)).squeeze(0)


def mean_of(steps: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of each metric over gradient steps."""
    columns = defaultdict(list)
    for step in steps:
        for name, value in step.items():
            columns[name].append(value)
    return {name: torch.stack(values).mean() for name, values in columns.items()}
