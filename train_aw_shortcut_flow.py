"""Stage 2: improve a cloned policy offline by advantage weighting (AW-ShortCut Flow), on demonstrations with rewards.

    python train_aw_shortcut_flow.py --pretrained_path runs/shortcut_flow-PickCube-v1-seed0

Without `--pretrained_path` it starts from scratch. Writes `best_model.safetensors` into
`runs/aw_shortcut_flow-<env_id>-seed<seed>`, which carries V, and the return that it predicts, for Stage 3.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace

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
    from reinflow.data.demos import hasten_, open_demos
    from reinflow.envs import make_env
    from reinflow.policies import build_policy
    from reinflow.run.run import Run
    from reinflow.runtime import distributed
    from reinflow.runtime.gpu import enough_memory
    from reinflow.storage.checkpoint import adopt_teacher_, load_checkpoint, load_state_
    from reinflow.training.loops import Offline, OfflineState, half_a_batch
    from reinflow.training.spread import spread_at
    from reinflow.training.trainer import Trainer
    from reinflow.training.videos import filming
    from reinflow.types import Objective

    checkpoint = load_checkpoint(config.pretrained_path) if config.pretrained_path else None
    before = checkpoint.objective if checkpoint else None
    env_config = config.env.completed(checkpoint.env_spec if checkpoint else None, before)
    asked = config.env.reward_mode or (before.reward_mode if before else None)
    demos = open_demos(config.demos, env_config, need_rewards=True, reward_mode=asked)
    env_config = replace(env_config, reward_mode=demos.reward_mode or env_config.reward_mode)
    objective = Objective(config.critics.gamma, env_config.reward_mode, env_config.terminate_on_success)
    settled = replace(config, env=config.env.settled(objective))
    name = f"aw_shortcut_flow-{env_config.env_id}-seed{config.run.seed}"
    with Run.open(
        config.run, name=name, full_config=settled, total=config.offline.total_iters, unit="iterations"
    ) as run:
        pretrained = checkpoint and checkpoint.policy_spec.starting_with(config.policy.initial_noise_scale)
        chosen = pretrained or config.policy
        horizons = {"act_horizon": chosen.act_horizon, "obs_horizon": chosen.obs_horizon}
        gamma = objective.gamma
        eval_envs = config.evaluation.envs if distributed.leads() else 1
        builds = config.evaluation.builds
        env = make_env(env_config, num_envs=eval_envs, builds=builds, gamma=gamma, device=run.device, **horizons)
        with closing(env):
            demos.fit_(env.spec)
            hasten_(demos, env.spec, config.demos)
            spec = pretrained or config.policy.for_env(env.spec, config.num_inference_steps)
            spec.check_fits(env.spec)
            dataset = ChunkDataset(
                demos,
                pred_horizon=spec.pred_horizon,
                gamma=gamma,
                device=run.device,
                max_picture_gb=config.demos.max_picture_gb,
                still=env.spec.still,
                **horizons,
            )
            policy = build_policy(spec).to(run.device)
            if checkpoint:
                load_state_(policy, checkpoint.policy_state, f"the policy of {config.pretrained_path}")
            else:
                policy.fit_normalizers_(*dataset.statistics())
                adopt_teacher_(policy)
            learner = AdvantageWeightedRegression(
                policy, config.bc, config.awr, config.critics, config.offline.total_iters
            )
            learner.critics.start_at_(mean_value(dataset.reward, dataset.discount, dataset.terminated))
            with (
                enough_memory(half_a_batch(config.offline)),
                filming(config.run, env.spec, settled.env, policy, config.evaluation.eval_seed) as camera,
            ):
                start = OfflineState(evaluated=checkpoint is None)  # a pretrained policy may stay the best
                loop = Offline(learner, dataset.sample_transitions, config.offline, run, run.generator(), start)
                inspect = spread_at(dataset.overview())
                Trainer(loop, env, config.evaluation, objective, camera=camera, hand_over=True, inspect=inspect).train()


if __name__ == "__main__":
    run_script(main, Config, presets=WEIGHTED_PRESETS, loads="torch, demonstrations and the simulator")
