"""Stage 2: improve a cloned policy offline by advantage weighting (AW-ShortCut Flow), on demonstrations with rewards.

    python train_aw_shortcut_flow.py --pretrained_path runs/shortcut_flow-PickCube-v1-seed0

Without `--pretrained_path` it starts from scratch. Writes `best_model.safetensors` into
`runs/aw_shortcut_flow-<env_id>-seed<seed>`, which carries V, and the return that it predicts, for Stage 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reinflow.algos.config import AWRConfig, BCConfig, CriticConfig
from reinflow.cli import Flat, run_script
from reinflow.data.config import DemoConfig
from reinflow.envs import EnvConfig
from reinflow.policies import PolicyConfig
from reinflow.presets import WEIGHTED_PRESETS
from reinflow.run.config import RunConfig
from reinflow.training.config import EvalConfig, OfflineConfig


@dataclass(frozen=True)
class Config:
    """Stage 2: advantage-weighted offline improvement."""

    pretrained_path: str | None = None
    """checkpoint of Stage 1, a file or a run directory; None trains from scratch"""
    num_inference_steps: int = 4
    """denoising steps K; only used from scratch, a checkpoint keeps its own"""
    run: Flat[RunConfig] = field(default_factory=RunConfig)
    env: Flat[EnvConfig] = field(default_factory=EnvConfig)
    demos: Flat[DemoConfig] = field(default_factory=DemoConfig)
    policy: Flat[PolicyConfig] = field(default_factory=PolicyConfig)
    bc: Flat[BCConfig] = field(default_factory=BCConfig)
    awr: Flat[AWRConfig] = field(default_factory=AWRConfig)
    critics: Flat[CriticConfig] = field(default_factory=CriticConfig)
    offline: Flat[OfflineConfig] = field(default_factory=OfflineConfig)
    evaluation: Flat[EvalConfig] = field(default_factory=EvalConfig)


def main(config: Config) -> None:
    """Train from demonstrations with rewards, evaluate along the way and keep the best policy."""
    from reinflow.algos.advantages import mean_value
    from reinflow.algos.awr import AdvantageWeightedRegression
    from reinflow.data.chunks import ChunkDataset
    from reinflow.policies.base import Policy
    from reinflow.storage.checkpoint import load_checkpoint
    from reinflow.training.stages import train_offline

    def build(policy: Policy, data: ChunkDataset) -> AdvantageWeightedRegression:
        learner = AdvantageWeightedRegression(policy, config.bc, config.awr, config.critics, config.offline.total_iters)
        learner.critics.start_at_(mean_value(data.reward, data.discount, data.terminated))
        return learner

    path = config.pretrained_path
    checkpoint = load_checkpoint(path) if path else None
    train_offline(config, build, name="aw_shortcut_flow", gamma=config.critics.gamma, checkpoint=checkpoint, path=path)


if __name__ == "__main__":
    run_script(main, Config, presets=WEIGHTED_PRESETS, loads="torch, demonstrations and the simulator")
