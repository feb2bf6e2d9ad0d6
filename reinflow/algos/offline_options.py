"""Options of the algorithms that learn offline, beside those in `options`: plain values, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from reinflow.algos.config import BCConfig
from reinflow.algos.options import ExplorationConfig, QConfig
from reinflow.errors import UserError
from reinflow.flags import Flat


@dataclass(frozen=True)
class RWRConfig:
    """How strongly the return weights the regression."""

    bc: Flat[BCConfig] = field(default_factory=BCConfig)
    beta: float = 3.0
    """inverse temperature, per std of the return; 0 is behaviour cloning, 10 that of DPPO"""
    weight_clip: float = 100.0
    """largest weight before the weights are divided by their mean; an average return weighs 1"""
    gamma: float | None = None
    """discount per env step; None is that of the checkpoint's critics, else 0.97"""


@dataclass(frozen=True)
class DIPOConfig:
    """How far recorded actions climb."""

    action_steps: int = 10
    """steps of Adam on every action of a batch; 0 is behaviour cloning"""
    action_lr: float = 0.03
    """length of such a step, in normalised action units"""
    bc: Flat[BCConfig] = field(default_factory=BCConfig)
    q: Flat[QConfig] = field(default_factory=QConfig)
    exploration: Flat[ExplorationConfig] = field(default_factory=ExplorationConfig)

    def __post_init__(self) -> None:
        if self.action_steps < 0 or self.action_lr <= 0:
            raise UserError("--action_steps must be at least 0 and --action_lr positive")


@dataclass(frozen=True)
class QSMConfig:
    """What the score is matched to."""

    q_score: float = 1.0
    """c: weight of Q's gradient; more goes further from the demonstrations"""
    own_noise: float = 1.0
    """b: share of the demonstrations in the score; 0 is the paper's, for runs that collect enough of their own"""
    bc: Flat[BCConfig] = field(default_factory=BCConfig)
    q: Flat[QConfig] = field(default_factory=QConfig)
    exploration: Flat[ExplorationConfig] = field(default_factory=ExplorationConfig)


@dataclass(frozen=True)
class FQLConfig:
    """The one-step policy beside the flow."""

    distillation: float = 3.0
    """alpha: weight of the distance to the flow's actions beside Q; more stays closer to the demonstrations"""
    lr_one_step: float = 1e-4
    """learning rate of the one-step policy"""
    bc: Flat[BCConfig] = field(default_factory=BCConfig)
    q: Flat[QConfig] = field(default_factory=lambda: QConfig(num_qs=2, num_min_qs=1))
    exploration: Flat[ExplorationConfig] = field(default_factory=ExplorationConfig)


@dataclass(frozen=True)
class MeanFlowQLConfig:
    """How much a one-step policy stays with the demonstrations."""

    own_share: float = 0.75
    """w: share of the policy's own loss once it has fallen from 1; the rest is Q's"""
    own_share_updates: int = 1_000
    """gradient steps of that fall"""
    bc: Flat[BCConfig] = field(default_factory=BCConfig)
    q: Flat[QConfig] = field(default_factory=lambda: QConfig(num_qs=2))
    exploration: Flat[ExplorationConfig] = field(default_factory=ExplorationConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.own_share <= 1:
            raise UserError(f"--own_share {self.own_share} must be from 0 to 1")


@dataclass(frozen=True)
class CQLConfig(MeanFlowQLConfig):
    """How strongly Q is pushed down off the data."""

    own_share: float = 0.01
    """w: weight of the policy's own loss once it has fallen from 1; the rest is Q's"""
    cql_alpha: float = 1.0
    """weight of the conservative term"""
    cql_samples: int = 10
    """candidates per row and kind"""
    cql_temperature: float = 1.0
    """T: small ones push down the highest candidate alone, large ones all alike"""


@dataclass(frozen=True)
class CalQLConfig(CQLConfig):
    """How Q is held at the returns of the demonstrations."""

    cql_samples: int = 4
    """candidates per row and kind"""
    backup_samples: int = 10
    """next actions of the policy, the best of which is bootstrapped; 1 is its own"""
