"""Stage 1: clone demonstrations with a flow policy, ShortCut Flow by default.

    python train_shortcut_flow.py --env_id PickCube-v1 --demo_path demos/PickCube-v1/trajectory.h5

Writes `runs/shortcut_flow-<env_id>-seed<seed>/best_model.safetensors`, which Stages 2 and 3 start from.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from reinflow.algos.config import BCConfig
from reinflow.cli import Flat, run_script
from reinflow.data.config import DemoConfig
from reinflow.envs import EnvConfig
from reinflow.policies import PolicyConfig
from reinflow.presets import CLONING_PRESETS
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
    from reinflow.data.demos import hasten_, open_demos
    from reinflow.envs import make_env
    from reinflow.errors import UserError
    from reinflow.policies import build_policy
    from reinflow.run.run import Run
    from reinflow.runtime import distributed
    from reinflow.runtime.gpu import enough_memory
    from reinflow.storage.checkpoint import adopt_teacher_
    from reinflow.training.loops import Offline, OfflineState, half_a_batch
    from reinflow.training.spread import spread_at
    from reinflow.training.trainer import Trainer
    from reinflow.training.validation import Validation
    from reinflow.training.videos import filming

    if config.patience and not config.validation_share:
        raise UserError("--patience looks at the loss on held-out episodes: pass --validation_share .1 as well")
    env_config = config.env.completed()
    demos = open_demos(config.demos, env_config)
    name = f"shortcut_flow-{env_config.env_id}-seed{config.run.seed}"
    with Run.open(
        config.run, name=name, full_config=config, total=config.offline.total_iters, unit="iterations"
    ) as run:
        horizons = {"act_horizon": config.policy.act_horizon, "obs_horizon": config.policy.obs_horizon}
        eval_envs = config.evaluation.envs if distributed.leads() else 1
        builds = config.evaluation.builds
        env = make_env(env_config, num_envs=eval_envs, builds=builds, gamma=1.0, device=run.device, **horizons)
        with closing(env):
            demos.fit_(env.spec)
            hasten_(demos, env.spec, config.demos)
            spec = config.policy.for_env(env.spec, config.num_inference_steps)
            windows = partial(
                ChunkDataset,
                pred_horizon=spec.pred_horizon,
                gamma=1.0,
                device=run.device,
                max_picture_gb=config.demos.max_picture_gb,
                still=env.spec.still,
                **horizons,
            )
            learned, held_out = demos.split(config.validation_share)
            dataset = windows(learned)
            validation = None
            if held_out.trajectories:
                validation = Validation(windows(held_out).overview(), config.run.seed, config.patience)
            policy = build_policy(spec).to(run.device)
            policy.fit_normalizers_(*dataset.statistics())
            adopt_teacher_(policy)
            learner = BehaviorCloning(policy, config.bc, config.offline.total_iters)
            with (
                enough_memory(half_a_batch(config.offline)),
                filming(config.run, env.spec, config.env, policy, config.evaluation.eval_seed) as camera,
            ):
                untrained = OfflineState(evaluated=True)  # there is nothing to evaluate yet
                loop = Offline(
                    learner, dataset.sample, config.offline, run, run.generator(), untrained, validation=validation
                )
                inspect = spread_at(dataset.overview())
                Trainer(loop, env, config.evaluation, camera=camera, inspect=inspect).train()


if __name__ == "__main__":
    run_script(main, Config, presets=CLONING_PRESETS, loads="torch, demonstrations and the simulator")
