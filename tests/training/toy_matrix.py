"""An algorithm against its own clone on the toy, with a budget that is the same for all: a fact of one row each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from reinflow.algorithms import OFFLINE, ONLINE, OnPolicy
from reinflow.algos.advantages import mean_value
from reinflow.algos.bc import BehaviorCloning
from reinflow.algos.config import BCConfig
from reinflow.algos.setting import Setting
from reinflow.data.chunks import ChunkDataset
from reinflow.data.replay import ReplayBuffer
from reinflow.data.trajectories import Demos, Trajectory
from reinflow.envs import EnvConfig, make_env
from reinflow.envs.toy import toy_demos
from reinflow.flags import with_flags
from reinflow.policies import PolicySpec, build_policy
from reinflow.run.config import RunConfig
from reinflow.run.run import Run
from reinflow.training import loops, off_policy
from reinflow.training.config import EvalConfig
from reinflow.training.evaluation import evaluate
from reinflow.training.trainer import Trainer

GAMMA = 0.9
HORIZONS: dict[str, Any] = {"obs_horizon": 1, "act_horizon": 4}
SIZES: dict[str, Any] = {
    "net": "mlp", "pred_horizon": 4, "state_dim": 3, "action_dim": 2, "num_inference_steps": 2, "mlp_hidden_dim": 64,
    "mlp_depth": 2, "diffusion_step_embed_dim": 8, **HORIZONS,
}  # fmt: skip
RHYTHM: dict[str, Any] = {
    "num_envs": 64, "total_timesteps": 20_000, "eval_freq": 0, "save_freq": 0, "learning_starts": 500,
    "updates_at_start": 200, "updates_per_step": 8, "batch_size": 128, "log_freq": 20,
}  # fmt: skip
FAST: dict[str, Any] = {"num_qs": 5, "q_hidden_dim": 64, "lr_critic": 1e-3, "tau": 0.02, "lr": 3e-4}
OWN: dict[str, dict[str, Any]] = {
    "ppo": {"rollout_steps": 6, "minibatch_size": 96, "critic_warmup_steps": 1_500, "lr_critic": 1e-3},
    "grpo": {"minibatch_size": 96, "epochs": 8, "lr": 5e-4},
    "ogpo": {"critic_updates": 2, "states": 32, "lr": 1e-3, "lag": 0.2, "bc_weight": 0.02},
    "residual": {"bound": 0.5, "switch_on": 1_000},
    "dsrl": {"bound": 2.0},
}
"""what an algorithm needs in so few env steps, on a task of three numbers"""
FAST_OFFLINE: dict[str, Any] = {"num_qs": 2, "q_hidden_dim": 64, "lr_critic": 3e-3, "tau": 0.05, "lr": 1e-3}
"""likewise, in so few gradient steps"""
EPISODES = 256


@cache
def demonstrations() -> ChunkDataset:
    """Noisy ones, through either door."""
    return windows(toy_demos(64, noise=0.5, seed=0))


@cache
def mixed_demonstrations() -> ChunkDataset:
    """Good ones, and as many that hardly know where to go."""
    return windows(toy_demos(32, noise=0.3, seed=0) + toy_demos(32, noise=3.0, seed=1))


def windows(episodes: list[dict[str, torch.Tensor]]) -> ChunkDataset:
    """Of recorded episodes."""
    trajectories = []
    for demo in episodes:
        nothing = torch.zeros(len(demo["actions"]), dtype=torch.bool)
        trajectories.append(Trajectory(**demo, terminated=nothing, truncated=nothing))
    demos = Demos(trajectories, env_id="Toy-v0", control_mode="toy")
    return ChunkDataset(demos, pred_horizon=4, gamma=GAMMA, still=(0.0, 0.0), **HORIZONS)


@cache
def clone(family: str, iterations: int = 500, mixed: bool = False) -> dict[str, Any]:
    """Weights of a clone of the demonstrations."""
    torch.manual_seed(0)
    dataset = mixed_demonstrations() if mixed else demonstrations()
    policy = build_policy(spec(family))
    policy.fit_normalizers_(*dataset.statistics())
    learner = BehaviorCloning(policy, BCConfig(lr=1e-3), iterations)
    for _ in range(iterations):
        learner.update(dataset.sample(256))
    return learner.ema.module.state_dict()


def spec(family: str) -> PolicySpec:
    """Of a small policy on the toy."""
    return PolicySpec.of(family=family, **SIZES)


def returns(folder: Path, algorithm: str, family: str, seed: int = 0, **options: Any) -> tuple[float, float]:
    """Mean return of the clone, and of what an algorithm made of it."""
    policy = build_policy(spec(family))
    policy.load_state_dict(clone(family))
    entry = ONLINE[algorithm]
    own = {**FAST, **RHYTHM, **OWN.get(algorithm, {}), **options}
    loop_config, config = (
        with_flags(default, {name: own[name] for name in own if name in known(default)})
        for default in (entry.loop(), entry.config())
    )
    env, eval_env = (make_env(EnvConfig("Toy-v0"), count, gamma=GAMMA, **HORIZONS) for count in (64, EPISODES))
    name = f"{algorithm}-{family}-{seed}"
    run_config = RunConfig(runs_dir=str(folder), exp_name=name, cuda=False, seed=seed)
    with Run.open(run_config, name=name, full_config=run_config, total=1, unit="env_steps") as run:
        on_policy = isinstance(entry, OnPolicy)
        steps = loop_config.rollout_steps if on_policy else 0
        setting = Setting(GAMMA, num_envs=env.num_envs, rollout_steps=steps)
        learner = entry.build(policy, config, setting)
        if on_policy:
            loop: Any = loops.OnPolicy(learner, env, loop_config, run, run.generator())
        else:
            replay = ReplayBuffer(20_000, GAMMA)
            demos = demonstrations().sample_transitions if loop_config.demo_share else None
            loop = off_policy.OffPolicy(learner, env, replay, loop_config, run, run.generator(), demos)
        settings = {"episodes": EPISODES, "seed": 1}
        before = evaluate(learner.evaluated.core, eval_env, **settings).metrics()
        Trainer(loop, eval_env, EvalConfig(num_eval_envs=EPISODES, num_eval_episodes=4)).train()
        after = evaluate(learner.evaluated, eval_env, **settings).metrics()
    return before["eval/return"], after["eval/return"]


def offline_returns(algorithm: str, family: str, updates: int = 400, **options: Any) -> tuple[float, float]:
    """Mean return of the clone, and of what an offline algorithm made of it with the same, mixed demonstrations."""
    torch.manual_seed(0)
    policy = build_policy(spec(family))
    policy.load_state_dict(clone(family, mixed=True))
    env = make_env(EnvConfig("Toy-v0"), EPISODES, gamma=GAMMA, **HORIZONS)
    before = evaluate(policy, env, episodes=EPISODES, seed=1).metrics()
    entry = OFFLINE[algorithm]
    own = {**FAST_OFFLINE, **options}
    config = with_flags(entry.config(), {name: own[name] for name in own if name in known(entry.config())})
    data = mixed_demonstrations()
    level = mean_value(data.reward, data.discount, data.terminated)
    learner = entry.build(policy, config, Setting(GAMMA, updates, level=level))
    for _ in range(updates):
        learner.update(data.sample_transitions(128))
    after = evaluate(learner.evaluated, env, episodes=EPISODES, seed=1).metrics()
    return before["eval/return"], after["eval/return"]


def known(config: Any) -> set[str]:
    """Names of the flags of a config."""
    from reinflow.flags import flat_fields

    return {name for name, _ in flat_fields(config)}
