"""All algorithms by name, with the loop that runs each: what `train_offline.py` and `train_online.py` choose from.

Adding one is a file in `reinflow/algos`, its options in `reinflow/algos/options.py` and a line here, all without torch:
`build(policy, options, setting)`, which is imported when it is called, gives a learner of its loop
(`reinflow/training/learner.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reinflow.algos.config import BCConfig
from reinflow.algos.offline_options import (
    CalQLConfig,
    CQLConfig,
    DIPOConfig,
    FQLConfig,
    MeanFlowQLConfig,
    QSMConfig,
    RWRConfig,
)
from reinflow.algos.options import (
    DISCOUNT,
    AWROptions,
    DQLConfig,
    DSRLConfig,
    GRPOConfig,
    IBRLConfig,
    IDQLConfig,
    OGPOConfig,
    PPOOptions,
    ResidualConfig,
    RLPDConfig,
    SACConfig,
)
from reinflow.errors import UserError
from reinflow.flags import flat_fields
from reinflow.policies import FAMILIES
from reinflow.registry import Entry, Facet, Registry, later
from reinflow.specs import Objective
from reinflow.training.config import OffPolicyConfig, OGPOLoop, OnPolicyConfig, WholeEpisodes, WithoutDemos


@dataclass(frozen=True)
class Offline(Entry[Any]):
    """An algorithm that learns from demonstrations alone."""

    rewards: bool = True
    """whether it needs them, and so a `gamma` among its options"""


@dataclass(frozen=True)
class OffPolicy(Entry[Any]):
    """An algorithm that learns from whatever is in a replay buffer while it acts."""

    loop: type = OffPolicyConfig
    """flags of its loop"""


@dataclass(frozen=True)
class OnPolicy(Entry[Any]):
    """An algorithm that learns from each of its rollouts once."""

    loop: type = OnPolicyConfig
    """flags of its loop"""


OFFLINE: Registry[Any] = Registry("offline algorithm", flag="algorithm")
ONLINE: Registry[Any] = Registry("online algorithm", flag="algorithm")
LOOPS: Registry[Any] = Facet(ONLINE, lambda entry: entry.loop)
"""the flags of the loop that an online algorithm runs in"""

REGRESSED, SAMPLED = ("Regressable",), ("Regressable", "Samplable")
ONE_STEP, SCORED = (*SAMPLED, "OneStep"), (*SAMPLED, "Scored")


def at_level(place: str) -> Callable[..., Any]:
    """`later` of a learner whose new critics start where the data's returns are."""
    make = later(place)

    def build(policy: Any, options: Any, setting: Any) -> Any:
        learner = make(policy, options, setting)
        if setting.level is not None:
            learner.start_at_(setting.level)
        return learner

    return build


OFFLINE.add("bc", Offline(later("reinflow.builders:cloning"), BCConfig, needs=REGRESSED, rewards=False))
OFFLINE.add("awr", Offline(later("reinflow.builders:awr"), AWROptions, needs=SAMPLED))
OFFLINE.add("rwr", Offline(later("reinflow.algos.rwr:RWR"), RWRConfig, needs=REGRESSED))
OFFLINE.add("idql", Offline(at_level("reinflow.algos.idql:IDQL"), IDQLConfig, needs=SAMPLED))
OFFLINE.add("dql", Offline(at_level("reinflow.algos.dql:DQL"), DQLConfig, needs=SAMPLED))
OFFLINE.add("dipo", Offline(at_level("reinflow.algos.dipo:DIPO"), DIPOConfig, needs=SAMPLED))
OFFLINE.add("qsm", Offline(at_level("reinflow.algos.qsm:QSM"), QSMConfig, needs=SCORED))
OFFLINE.add("fql", Offline(at_level("reinflow.algos.fql:FQL"), FQLConfig, needs=ONE_STEP))
OFFLINE.add("meanflow_ql", Offline(at_level("reinflow.algos.meanflow_ql:MeanFlowQL"), MeanFlowQLConfig, needs=ONE_STEP))
OFFLINE.add("cql", Offline(at_level("reinflow.algos.cql:CQL"), CQLConfig, needs=ONE_STEP))
OFFLINE.add("cal_ql", Offline(at_level("reinflow.algos.cal_ql:CalQL"), CalQLConfig, needs=ONE_STEP))

ONLINE.add("ppo", OnPolicy(later("reinflow.builders:ppo"), PPOOptions))
ONLINE.add("grpo", OnPolicy(later("reinflow.builders:grpo"), GRPOConfig, loop=WholeEpisodes))
ONLINE.add("dql", OffPolicy(later("reinflow.algos.dql:DQL"), DQLConfig, needs=SAMPLED))
ONLINE.add("idql", OffPolicy(later("reinflow.algos.idql:IDQL"), IDQLConfig, needs=SAMPLED))
ONLINE.add("dipo", OffPolicy(later("reinflow.algos.dipo:DIPO"), DIPOConfig, needs=SAMPLED))
ONLINE.add("qsm", OffPolicy(later("reinflow.algos.qsm:QSM"), QSMConfig, needs=SCORED))
ONLINE.add("fql", OffPolicy(later("reinflow.algos.fql:FQL"), FQLConfig, needs=ONE_STEP))
ONLINE.add("sac", OffPolicy(later("reinflow.builders:sac"), SACConfig, loop=WithoutDemos))
ONLINE.add("rlpd", OffPolicy(later("reinflow.builders:sac"), RLPDConfig))
ONLINE.add("ibrl", OffPolicy(later("reinflow.algos.helped:ibrl"), IBRLConfig, needs=("Samplable",)))
ONLINE.add("ogpo", OffPolicy(later("reinflow.builders:ogpo"), OGPOConfig, needs=REGRESSED, loop=OGPOLoop))
ONLINE.add("dsrl", OffPolicy(later("reinflow.algos.helped:dsrl"), DSRLConfig, needs=("Samplable",)))
ONLINE.add("residual", OffPolicy(later("reinflow.algos.helped:residual"), ResidualConfig, needs=("Samplable",)))


def check_family(registry: Registry[Any], algorithm: str, family: str) -> None:
    """UserError where a family lacks what an algorithm needs, with the families that have it."""
    if family not in (able := able_families(registry[algorithm])):
        needs = " and ".join(str(getattr(need, "__name__", need)) for need in registry[algorithm].needs)
        raise UserError(
            f"--algorithm {algorithm} needs a policy that is {needs}, which --family {family} is not: "
            f"it takes {', '.join(able) or 'none of those that there are'}"
        )


def able_families(entry: Entry[Any]) -> list[str]:
    """Names of the families that have all that an algorithm needs."""
    from reinflow import types

    needs = [need if isinstance(need, type) else getattr(types, need) for need in entry.needs]
    return [name for name, family in FAMILIES.items() if all(issubclass(family.made, need) for need in needs)]


def gamma_of(options: Any, objective: Objective | None) -> float:
    """The discount among an algorithm's options, else that of a checkpoint's critics, else the default."""
    given = dict(flat_fields(options)).get("gamma")
    if given is not None:
        return float(given)
    return objective.gamma if objective else DISCOUNT
