"""Options of the algorithms that `reinflow.algorithms` has by name: plain values, without torch.

Those of the three stages are in `config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reinflow.algos.config import AWRConfig, BCConfig, CriticConfig, PPOFlags
from reinflow.algos.schedules import NoiseConfig
from reinflow.errors import UserError
from reinflow.flags import Flat
from reinflow.policies.parts import NoiseNetConfig

DISCOUNT = 0.97
"""per env step, where neither a flag nor a checkpoint says another one"""


@dataclass(frozen=True)
class AWROptions:
    """Advantage-weighted regression."""

    bc: Flat[BCConfig] = field(default_factory=BCConfig)
    awr: Flat[AWRConfig] = field(default_factory=AWRConfig)
    critics: Flat[CriticConfig] = field(default_factory=CriticConfig)


@dataclass(frozen=True)
class PPOOptions:
    """PPO over the denoising chain: ReinFlow on a flow."""

    num_inference_steps: int | None = None
    """denoising steps K that are fine-tuned; None takes the checkpoint's"""
    freeze_visual_encoder: bool = False
    """keep an image encoder fixed: pictures are encoded once per decision and not stored"""
    ppo: Flat[PPOFlags] = field(default_factory=PPOFlags)
    noise: Flat[NoiseConfig] = field(default_factory=NoiseConfig)
    noise_net: Flat[NoiseNetConfig] = field(default_factory=NoiseNetConfig)


@dataclass(frozen=True)
class QConfig:
    """The Q functions of an algorithm."""

    gamma: float | None = None
    """discount per env step; None is that of the checkpoint's critics, else 0.97"""
    tau: float = 0.005
    """step of the target Qs towards the Qs, per update"""
    num_qs: int = 10
    """members of the Q ensemble"""
    num_min_qs: int = 2
    """random target members whose minimum is bootstrapped; all of them is the most pessimistic"""
    lr_critic: float = 3e-4
    """learning rate of the Qs"""
    q_hidden_dim: int = 256
    """width of the Qs"""
    q_layer_norm: bool = True
    """LayerNorm in every hidden layer, which keeps Qs from growing where no data are"""
    q_bins: int = 0
    """returns that a distributional head tells apart; 0 regresses the mean"""
    q_low: float = -0.25
    """lowest of these returns, as a multiple of the return at a reward of 1 per env step"""
    q_high: float = 1.25
    """highest of these returns, likewise"""

    def __post_init__(self) -> None:
        if not 1 <= self.num_min_qs <= self.num_qs:
            raise UserError(f"--num_min_qs {self.num_min_qs} must be from 1 to --num_qs {self.num_qs}")
        if self.q_bins and (self.q_bins < 2 or self.q_low >= self.q_high):
            raise UserError("--q_bins needs at least 2 bins, and --q_low must be below --q_high")


@dataclass(frozen=True)
class ExplorationConfig:
    """How a policy that is evaluated without noise acts while it learns."""

    explore_noise_scale: float = 1.0
    """std of the noise x_0 that a flow starts from when it explores; its evaluation has --initial_noise_scale"""
    explore_std: float = 0.1
    """std of what is added to every number of a chunk, in normalised action units"""

    def __post_init__(self) -> None:
        if min(self.explore_noise_scale, self.explore_std) < 0:
            raise UserError("--explore_noise_scale and --explore_std must not be negative")


def online_cloning() -> BCConfig:
    """The optimisation of a policy that learns from what it does: short warm-up, an average that follows soon."""
    return BCConfig(lr_warmup=100, ema_decay=0.99)


@dataclass(frozen=True)
class ChainConfig:
    """How a stochastic chain is moved."""

    lr: float = 3e-5
    """learning rate of the chain's means"""
    lr_noise: float = 3e-4
    """learning rate of its exploration noise"""
    min_std: float = 0.05
    """floor of the std of a whole chain, in normalised action units; each of K steps has it divided by sqrt(K)"""
    max_std: float = 0.4
    """its ceiling"""
    max_grad_norm: float = 1.0
    """gradient norm limit"""
    ema_decay: float = 0.99
    """decay of the moving average of the weights, which is evaluated"""

    def __post_init__(self) -> None:
        if not 0 < self.min_std < self.max_std:
            raise UserError(f"--min_std {self.min_std} and --max_std {self.max_std} need 0 < min < max")


@dataclass(frozen=True)
class DQLConfig:
    """Diffusion Q-learning."""

    eta: float = 1.0
    """weight of Q beside the policy's own loss; larger leaves the data sooner"""
    bc: Flat[BCConfig] = field(default_factory=online_cloning)
    q: Flat[QConfig] = field(default_factory=QConfig)
    exploration: Flat[ExplorationConfig] = field(default_factory=ExplorationConfig)


@dataclass(frozen=True)
class IDQLConfig:
    """Implicit diffusion Q-learning."""

    expectile: float = 0.8
    """V is this expectile of Q; 0.5 is the mean, near 1 the best of what was done"""
    explore_expectile: float = 0.7
    """weight of samples that are better than V, beside 1 minus it of the others, while it explores"""
    num_samples: int = 16
    """chunks that are drawn per decision"""
    bc: Flat[BCConfig] = field(default_factory=online_cloning)
    q: Flat[QConfig] = field(default_factory=QConfig)
    exploration: Flat[ExplorationConfig] = field(default_factory=ExplorationConfig)


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic."""

    target_std: float = 0.15
    """std of a whole chain's noise that the temperature aims at, in normalised action units"""
    lr_temperature: float = 3e-4
    """learning rate of the temperature's logarithm"""
    entropy_in_target: bool = False
    """TD targets value the entropy of the next chunk, too"""
    bc_weight: float = 0.0
    """weight of the policy's own loss on the demonstrations of a batch"""
    chain: Flat[ChainConfig] = field(default_factory=lambda: ChainConfig(lr=1e-4))
    q: Flat[QConfig] = field(default_factory=lambda: QConfig(num_qs=2, num_min_qs=2))


@dataclass(frozen=True)
class RLPDConfig(SACConfig):
    """Reinforcement learning with prior data."""

    q: Flat[QConfig] = field(default_factory=lambda: QConfig(num_qs=10, num_min_qs=2))


@dataclass(frozen=True)
class OGPOConfig:
    """PPO on imagined chains."""

    group: int = 8
    """chains that are imagined per state"""
    states: int = 64
    """remembered states per update of the actor"""
    critic_updates: int = 16
    """updates of the Qs for one of the actor"""
    clip_ratio: float = 0.15
    """clip range of the scaled ratio"""
    lag: float = 0.02
    """step of the actor that imagines towards the one that learns, per update of that one"""
    bc_weight: float = 0.1
    """weight of the policy's own loss on demonstrations"""
    chain: Flat[ChainConfig] = field(default_factory=lambda: ChainConfig(min_std=0.1, max_std=0.3, lr_noise=0.0))
    q: Flat[QConfig] = field(default_factory=lambda: QConfig(num_qs=5, num_min_qs=2, lr_critic=1e-3, tau=0.05))

    def __post_init__(self) -> None:
        if self.group < 2 or self.critic_updates < 1:
            raise UserError("--group must be at least 2 and --critic_updates at least 1")


@dataclass(frozen=True)
class HelpedConfig:
    """A small network beside a frozen policy."""

    bound: float = 1.0
    """largest number that it can give: of a correction or an action in normalised units, of x_0 in stds"""
    actor_hidden_dim: int = 256
    """width of its two layers"""
    lr: float = 3e-4
    """its learning rate"""
    actor_tau: float = 0.01
    """step of its moving average, which is evaluated, per update"""
    switch_on: int = 0
    """decisions over which it is switched on while it explores; 0 has it from the first one on"""
    max_grad_norm: float = 1.0
    """gradient norm limit"""
    explore_std: float = 0.1
    """std of what exploration adds to every number of a chunk, in normalised action units"""
    q: Flat[QConfig] = field(default_factory=QConfig)

    def __post_init__(self) -> None:
        if self.bound <= 0 or min(self.switch_on, self.explore_std) < 0:
            raise UserError("--bound must be above 0, --switch_on and --explore_std at least 0")


@dataclass(frozen=True)
class ResidualConfig(HelpedConfig):
    """A bounded correction of a frozen policy's chunks."""

    bound: float = 0.1
    switch_on: int = 5_000


@dataclass(frozen=True)
class DSRLConfig(HelpedConfig):
    """The initial noise of a frozen flow."""

    bound: float = 1.5


@dataclass(frozen=True)
class IBRLConfig(HelpedConfig):
    """Another actor beside a frozen policy; the Qs choose between both."""

    q: Flat[QConfig] = field(default_factory=lambda: QConfig(num_qs=5, tau=0.01))


@dataclass(frozen=True)
class GRPOConfig:
    """Group-relative policy optimisation."""

    gamma: float | None = None
    """discount per env step; None is that of the checkpoint's critics, else 0.97"""
    group: int = 8
    """episodes that start from one state; --num_envs is a multiple of it"""
    epochs: int = 4
    """passes over each rollout"""
    minibatch_size: int = 512
    """decisions per gradient step"""
    clip_ratio: float = 0.1
    """clip range of the scaled ratio"""
    kl_weight: float = 0.01
    """weight of the KL to the policy that it started from, per scored number"""
    chain: Flat[ChainConfig] = field(default_factory=lambda: ChainConfig(lr=1e-4, min_std=0.1, lr_noise=3e-5))

    def __post_init__(self) -> None:
        if self.group < 2 or min(self.epochs, self.minibatch_size) < 1:
            raise UserError("--group must be at least 2, --epochs and --minibatch_size at least 1")
