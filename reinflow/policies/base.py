"""What all policy families share: observation encoding, action normalisation, the executed slice and acting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.normalize import MinMaxNormalizer
from reinflow.errors import UserError
from reinflow.policies.encoder import ObsEncoder
from reinflow.policies.spec import PolicySpec
from reinflow.runtime.acceleration import EXACT, replayed
from reinflow.types import Obs, Stochastic

if TYPE_CHECKING:
    from reinflow.policies.parts import NoiseNetConfig


class Policy(nn.Module):
    """Base of the families; a family adds `loss` (Regressable), `sample` (Samplable) and what else it offers."""

    def __init__(self, spec: PolicySpec, net: nn.Module):
        super().__init__()
        self.spec = spec
        self.net = net
        self.encoder = ObsEncoder(spec)
        self.action_normalizer = MinMaxNormalizer(spec.action_dim)
        self.replay_()

    def fit_normalizers_(
        self, states: Float[Tensor, "m s"], actions: Float[Tensor, "m a"], pictures: Obs | None = None
    ) -> None:
        """Take the statistics of the demonstrations; they stay for all stages."""
        self.encoder.fit_normalizers_(states, pictures)
        self.action_normalizer.fit_(actions)

    def encode(self, obs: Obs) -> Float[Tensor, "b z"]:
        """The condition of each observation history, normalised: what `loss` and `sample` take."""
        return self.encoder(obs)

    def normalize_chunk(self, chunk: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """Env units to [-1, 1] over the demonstrated range."""
        return self.action_normalizer.normalize(chunk)

    def to_action(self, chunk: Float[Tensor, "b h a"]) -> Float[Tensor, "b e a"]:
        """Executed slice of a normalised chunk, limited to the demonstrated range, in env units."""
        return self.action_normalizer.denormalize(chunk[:, self.spec.executed].clamp(-1, 1))

    @property
    def device(self) -> torch.device:
        """Where its weights are, and so where noise is drawn."""
        return self.action_normalizer.shift.device

    @property
    def core(self) -> Policy:
        """The policy that a checkpoint holds: itself, where nothing is wrapped around it."""
        return self

    @property
    def extra(self) -> dict[str, Any]:
        """What else a checkpoint says of how it acts."""
        return {}

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the standard normal noise of one decision."""
        return self.spec.chunk_shape

    def start_from(self, noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """x_0 of standard normal `noise`."""
        return self.spec.initial_noise_scale * noise

    def initial_noise(self, rows: int, generator: torch.Generator | None = None) -> Float[Tensor, "b h a"]:
        """Drawn x_0; a scale of 0 draws as many numbers as any other."""
        return self.start_from(torch.randn(rows, *self.spec.chunk_shape, generator=generator, device=self.device))

    @torch.no_grad()
    def act(
        self,
        obs: Obs,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
        noise: Float[Tensor, "b h a"] | None = None,
    ) -> Float[Tensor, "b e a"]:
        """Actions in env units without exploration noise, in exact float32 and without gradients.

        The chain starts from standard normal `noise`, times the spec's scale, or from what `generator` draws. On a GPU
        it is replayed as a CUDA graph from the fourth call of a shape on.
        """
        if noise is None:
            shape = (len(obs["state"]), *self.spec.chunk_shape)
            noise = torch.randn(shape, generator=generator, device=self.device)
        return self._decide({name: obs[name] for name in self.spec.observed}, noise, num_steps)

    def _decided(self, obs: Obs, noise: Float[Tensor, "b h a"], num_steps: int | None) -> Float[Tensor, "b e a"]:
        with EXACT.products():
            return self.to_action(self.sample(self.encode(obs), self.start_from(noise), num_steps))

    def replay_(self, wanted: bool = True) -> None:
        """Whether `act` is a CUDA graph on a GPU; the graphs that there are, are made anew."""
        self._replays = wanted
        self._decide = replayed(self._decided, wanted, self.device, depends_on=self._graph_reads)

    def _graph_reads(self) -> tuple[Any, ...]:
        """What decides an action and may be replaced by another object."""
        return self.spec, self.training, id(self.encoder), id(self.net), id(self.action_normalizer)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Every move to another device or type comes through here."""
        moved = super()._apply(fn, recurse)
        self.replay_(self._replays)
        return moved

    def sample(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """The normalised chunk that x_0 = `noise` leads to; None takes the spec's steps. Every family has its own."""
        raise NotImplementedError

    def chain(self, num_steps: int, config: NoiseNetConfig) -> Stochastic:
        """How it explores, in `num_steps` denoising steps where it has several: what PPO fine-tunes.

        It shares the policy's network, so training it trains the policy. UserError where a family has none.
        """
        raise UserError(
            f"PPO needs a Stochastic policy, got {type(self).__name__}: "
            "give it a chain(num_steps, config), or derive it from FlowPolicy"
        )

    @property
    def teacher_path(self) -> str | None:
        """The checkpoint that a new policy is distilled from, in families that take one."""
        return None

    def learn_from_(self, teacher: Policy) -> None:
        """Take over what `teacher_path` names."""
        raise NotImplementedError

    def steps_warning(self, num_steps: int) -> str | None:
        """A sentence where sampling in this many steps costs accuracy that another number keeps, else None."""
        return None
