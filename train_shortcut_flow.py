"""Stage 1: clone demonstrations with a flow policy, ShortCut Flow by default.

    python train_shortcut_flow.py --env_id PickCube-v1 --demo_path demos/PickCube-v1/trajectory.h5

Writes `runs/shortcut_flow-<env_id>-seed<seed>/best_model.safetensors`, which Stages 2 and 3 start from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from reinflow.algos.config import BCConfig
from reinflow.cli import Flat, run_script
from reinflow.data.config import DemoConfig
from reinflow.envs import EnvConfig
from reinflow.policies import PolicyConfig
from reinflow.presets import CLONING_PRESETS
from reinflow.recipes import flags_of
from reinflow.run.config import RunConfig
from reinflow.training.config import EvalConfig, OfflineConfig


@dataclass(frozen=True)
class Config:
    """Stage 1: behaviour cloning of demonstrations."""

    num_inference_steps: int = 4
    """denoising steps K of evaluation, and the default of later stages"""
    validation_share: float = 0.0
    """share of the episodes, from the last one back, that is not trained on; the loss on them is logged"""
    patience: int = 0
    """evaluations in a row without a lower loss on --validation_share after which training ends; 0 is never"""
    run: Flat[RunConfig] = field(default_factory=RunConfig)
    env: Flat[EnvConfig] = field(default_factory=EnvConfig)
    demos: Flat[DemoConfig] = field(default_factory=DemoConfig)
    policy: Flat[PolicyConfig] = field(default_factory=PolicyConfig)
    bc: Flat[BCConfig] = field(default_factory=BCConfig)
    offline: Flat[OfflineConfig] = field(default_factory=OfflineConfig)
    evaluation: Flat[EvalConfig] = field(default_factory=EvalConfig)


def main(config: Config) -> None:
    """Train from demonstrations, evaluate along the way and keep the best policy."""
    from reinflow.algos.bc import BehaviorCloning
    from reinflow.data.chunks import ChunkDataset
    from reinflow.errors import UserError
    from reinflow.policies.base import Policy
    from reinflow.training.stages import train_offline

    def build(policy: Policy, data: ChunkDataset) -> BehaviorCloning:
        return BehaviorCloning(policy, config.bc, config.offline.total_iters)

    if config.patience and not config.validation_share:
        raise UserError("--patience looks at the loss on held-out episodes: pass --validation_share .1 as well")
    watching = {"held_out": config.validation_share, "patience": config.patience}
    train_offline(config, build, name="shortcut_flow", gamma=None, **watching)


if __name__ == "__main__":
    recipes, loads = partial(flags_of, stage="pre"), "torch, demonstrations and the simulator"
    run_script(main, Config, presets=CLONING_PRESETS, recipes=recipes, loads=loads)
