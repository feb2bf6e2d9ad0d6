"""Learn from demonstrations alone, with any offline algorithm.

    python train_offline.py --algorithm awr --pretrained_path runs/shortcut_flow-PickCube-v1-seed0
    python train_offline.py --algorithm bc --help

Each algorithm has flags of its own, which `--algorithm X --help` shows. Writes `runs/<algorithm>-<env_id>-seed<seed>/`;
its `best_model.pt` carries the critics, which online algorithms start from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from reinflow.algorithms import OFFLINE, check_family, gamma_of
from reinflow.cli import Flat, run_script, with_flags
from reinflow.data.config import DemoConfig
from reinflow.envs import EnvConfig
from reinflow.policies import PolicyConfig
from reinflow.registry import Choosing, options_of
from reinflow.run.config import RunConfig
from reinflow.training.config import EvalConfig, OfflineConfig


@dataclass(frozen=True)
class Config(Choosing):
    """Offline training by any algorithm."""

    algorithm: str = "awr"
    """what learns; each has flags of its own"""
    pretrained_path: str | None = None
    """checkpoint of an earlier stage, a file or a run directory; None trains a new policy"""
    num_inference_steps: int = 4
    """denoising steps K of a new policy; a checkpoint keeps its own"""
    run: Flat[RunConfig] = field(default_factory=RunConfig)
    env: Flat[EnvConfig] = field(default_factory=EnvConfig)
    demos: Flat[DemoConfig] = field(default_factory=DemoConfig)
    policy: Flat[PolicyConfig] = field(default_factory=PolicyConfig)
    algorithm_options: Any = options_of(OFFLINE)
    offline: Flat[OfflineConfig] = field(default_factory=OfflineConfig)
    evaluation: Flat[EvalConfig] = field(default_factory=EvalConfig)


def main(config: Config) -> None:
    """Train, evaluate along the way and keep the best policy."""
    from reinflow.algos.advantages import mean_value
    from reinflow.algos.setting import Setting
    from reinflow.data.chunks import ChunkDataset
    from reinflow.policies.base import Policy
    from reinflow.storage.checkpoint import load_checkpoint
    from reinflow.training.learner import BatchLearner
    from reinflow.training.stages import train_offline

    path = config.pretrained_path
    checkpoint = load_checkpoint(path) if path else None
    family = checkpoint.policy_spec.family if checkpoint else config.policy.family
    check_family(OFFLINE, config.algorithm, family)
    entry = OFFLINE[config.algorithm]
    gamma = None
    if entry.rewards:
        gamma = gamma_of(config.algorithm_options, checkpoint.objective if checkpoint else None)
        config = with_flags(config, {"gamma": gamma})

    def build(policy: Policy, data: ChunkDataset) -> BatchLearner:
        setting = Setting(1.0 if gamma is None else gamma, updates=config.offline.total_iters)
        if entry.rewards:
            setting = replace(setting, level=mean_value(data.reward, data.discount, data.terminated))
        return entry.build(policy, config.algorithm_options, setting)

    train_offline(config, build, name=config.algorithm, gamma=gamma, checkpoint=checkpoint, path=path)


if __name__ == "__main__":
    run_script(main, Config, loads="torch, demonstrations and the simulator")
