"""What the training scripts share: a run with its policy, demonstrations, envs, evaluation and keeper.

A script gives the flags, and a function that builds what learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from torch import Tensor

from reinflow.data.chunks import ChunkDataset
from reinflow.data.config import DemoConfig
from reinflow.data.demos import hasten_, open_demos
from reinflow.data.trajectories import Demos
from reinflow.envs import EnvConfig, make_env
from reinflow.envs.builds import Builds
from reinflow.envs.config import CompleteEnvConfig
from reinflow.policies import PolicyConfig, PolicySpec, build_policy
from reinflow.policies.base import Policy
from reinflow.run.config import RunConfig
from reinflow.run.run import Run
from reinflow.runtime import distributed
from reinflow.runtime.gpu import enough_memory
from reinflow.storage.checkpoint import Checkpoint, adopt_teacher_, load_state_
from reinflow.training.config import EvalConfig, OfflineConfig
from reinflow.training.fine_tuning import beside_the_pretrained
from reinflow.training.learner import BatchLearner
from reinflow.training.loops import Loop, Offline, OfflineState, half_a_batch
from reinflow.training.spread import spread_at
from reinflow.training.trainer import Inspection, Trainer
from reinflow.training.validation import Validation
from reinflow.training.videos import filming
from reinflow.types import ChunkEnv, EnvSpec, Objective


class Flags(Protocol):
    """Flags that every training script has."""

    @property
    def run(self) -> RunConfig:
        """Where it is written, and its seed."""
        ...

    @property
    def env(self) -> EnvConfig:
        """The task."""
        ...

    @property
    def evaluation(self) -> EvalConfig:
        """How the policy is evaluated."""
        ...


class OfflineFlags(Flags, Protocol):
    """Flags of a script that learns from demonstrations alone."""

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps of a new policy."""
        ...

    @property
    def demos(self) -> DemoConfig:
        """The demonstrations."""
        ...

    @property
    def policy(self) -> PolicyConfig:
        """What a new policy is made of."""
        ...

    @property
    def offline(self) -> OfflineConfig:
        """Length and rhythm."""
        ...


def train_offline(
    config: OfflineFlags,
    build: Callable[[Policy, ChunkDataset], BatchLearner],
    *,
    name: str,
    gamma: float | None,
    checkpoint: Checkpoint | None = None,
    path: str | None = None,
    held_out: float = 0.0,
    patience: int = 0,
) -> None:
    """Train what `build` makes of demonstrations and a policy, which is new or that of `checkpoint`, read from `path`.

    `gamma` is the discount per env step of a learner that needs rewards, None for one that doesn't. `held_out` is the
    share of the episodes whose loss is only watched; `patience` ends the run after as many logged losses without a
    lower one, and 0 doesn't.
    """
    demos, task, objective = demonstrations(config, checkpoint, gamma)
    settled = replace(cast(Any, config), env=config.env.settled(objective)) if objective else config
    full_name = f"{name}-{task.env_id}-seed{config.run.seed}"
    total = config.offline.total_iters
    with Run.open(config.run, name=full_name, full_config=settled, total=total, unit="iterations") as run:
        pretrained = checkpoint and checkpoint.policy_spec.starting_with(config.policy.initial_noise_scale)
        chosen = pretrained or config.policy
        horizons: dict[str, Any] = {"act_horizon": chosen.act_horizon, "obs_horizon": chosen.obs_horizon}
        discount = 1.0 if gamma is None else gamma
        eval_envs = config.evaluation.envs if distributed.leads() else 1
        builds = config.evaluation.builds
        env = make_env(task, num_envs=eval_envs, builds=builds, gamma=discount, device=run.device, **horizons)
        with closing(env):
            spec = pretrained or config.policy.for_env(env.spec, config.num_inference_steps)
            learned, watched = fitted(demos, config.demos, env.spec).split(held_out)
            dataset = windows(learned, config.demos, spec, env.spec, discount, run)
            validation = None
            if watched.trajectories:
                seen = windows(watched, config.demos, spec, env.spec, discount, run).overview()
                validation = Validation(seen, config.run.seed, patience)
            policy = policy_of(spec, checkpoint, path, dataset, run)
            learner = build(policy, dataset)
            with (
                enough_memory(half_a_batch(config.offline)),
                filming(config.run, env.spec, settled.env, policy, config.evaluation.eval_seed) as camera,
            ):
                # a pretrained policy may stay the best; of a new one there is nothing to evaluate yet
                start = OfflineState(evaluated=checkpoint is None)
                draw = dataset.sample if gamma is None else dataset.sample_transitions
                loop = Offline(learner, draw, config.offline, run, run.generator(), start, validation=validation)
                inspect, hand_over = spread_at(dataset.overview()), gamma is not None
                Trainer(
                    loop, env, config.evaluation, objective, camera=camera, hand_over=hand_over, inspect=inspect
                ).train()


def demonstrations(
    config: OfflineFlags, checkpoint: Checkpoint | None, gamma: float | None
) -> tuple[Demos, CompleteEnvConfig, Objective | None]:
    """Demonstrations, the task under the rules of their rewards, and the return to maximise where there is one."""
    before = checkpoint.objective if checkpoint else None
    task = config.env.completed(checkpoint.env_spec if checkpoint else None, before)
    if gamma is None:
        return open_demos(config.demos, task), task, None
    asked = config.env.reward_mode or (before.reward_mode if before else None)
    demos = open_demos(config.demos, task, need_rewards=True, reward_mode=asked)
    task = replace(task, reward_mode=demos.reward_mode or task.reward_mode)
    return demos, task, Objective(gamma, task.reward_mode, task.terminate_on_success)


def fitted(demos: Demos, config: DemoConfig, task: EnvSpec) -> Demos:
    """The same demonstrations as the task takes them, and as fast as the flags ask. UserError where they don't fit."""
    demos.fit_(task)
    hasten_(demos, task, config)
    return demos


def windows(demos: Demos, config: DemoConfig, spec: PolicySpec, task: EnvSpec, gamma: float, run: Run) -> ChunkDataset:
    """`fitted` demonstrations as a policy of `spec` learns from them. UserError where it doesn't fit the task."""
    spec.check_fits(task)
    return ChunkDataset(
        demos,
        obs_horizon=spec.obs_horizon,
        pred_horizon=spec.pred_horizon,
        act_horizon=spec.act_horizon,
        gamma=gamma,
        device=run.device,
        max_picture_gb=config.max_picture_gb,
        still=task.still,
    )


def policy_of(
    spec: PolicySpec, checkpoint: Checkpoint | None, path: str | None, dataset: ChunkDataset, run: Run
) -> Policy:
    """The policy of a checkpoint, or a new one with the statistics of the demonstrations."""
    policy = build_policy(spec).to(run.device)
    if checkpoint:
        load_state_(policy, checkpoint.policy_state, f"the policy of {path}")
    else:
        policy.fit_normalizers_(*dataset.statistics())
        adopt_teacher_(policy)
    return policy


def unchanged(policy: Policy) -> Policy:
    """The policy itself."""
    return policy


@dataclass(frozen=True)
class Beginning:
    """What an online run starts from, and what of its flags every loop needs."""

    name: str
    """of the run, before task and seed"""
    checkpoint: Checkpoint
    path: str
    """where the checkpoint was read from"""
    spec: PolicySpec
    """of the checkpoint's policy, with what flags change of it"""
    objective: Objective
    num_envs: int
    """of all processes"""
    total_timesteps: int
    """env steps"""
    reconfiguration_freq: int | None = None
    """episodes after which all envs get other geometry"""
    privileged: bool = False
    """whether observations hold the full state, too"""
    prepare: Callable[[Policy], Policy] = unchanged
    """makes what is trained of the checkpoint's policy"""
    levers: Sequence[str] = ("lower --batch_size, --num_envs or the widths of the networks",)
    """what makes it smaller where a GPU's memory runs out"""
    inspect: Inspection = beside_the_pretrained
    """looks at every evaluation"""


@dataclass(frozen=True)
class Stage:
    """What a loop is built from, once the run is open."""

    run: Run
    policy: Policy
    env: ChunkEnv


def train_online(config: Flags, beginning: Beginning, build: Callable[[Stage], Loop]) -> None:
    """Run the loop that `build` makes. `config` is settled: a resumed run finds in it what a checkpoint decided."""
    checkpoint, spec = beginning.checkpoint, beginning.spec
    task = config.env.completed(checkpoint.env_spec, checkpoint.objective)
    name, total = f"{beginning.name}-{task.env_id}-seed{config.run.seed}", beginning.total_timesteps
    with Run.open(config.run, name=name, full_config=config, total=total, unit="env_steps") as run, ExitStack() as envs:
        policy = build_policy(spec).to(run.device)
        load_state_(policy, checkpoint.policy_state, f"the policy of {beginning.path}")
        policy = beginning.prepare(policy)
        env, eval_env = (envs.enter_context(closing(one)) for one in both_envs(config, beginning, task, run))
        spec.check_fits(env.spec)
        loop = build(Stage(run, policy, env))
        camera = envs.enter_context(filming(config.run, env.spec, config.env, policy, config.evaluation.eval_seed))
        trainer = Trainer(
            loop,
            eval_env,
            config.evaluation,
            beginning.objective,
            camera=camera,
            prefer_newer=True,
            inspect=beginning.inspect,
        )
        with enough_memory(beginning.levers):
            trainer.train()


def both_envs(config: Flags, beginning: Beginning, task: CompleteEnvConfig, run: Run) -> Iterator[ChunkEnv]:
    """The envs that are trained in, and those of the evaluation, each made when it is asked for."""
    settings: dict[str, Any] = {
        "act_horizon": beginning.spec.act_horizon,
        "obs_horizon": beginning.spec.obs_horizon,
        "gamma": beginning.objective.gamma,
        "device": run.device,
    }
    own_envs = distributed.share(beginning.num_envs, "num_envs")
    builds = Builds(config.run.seed, distributed.rank() * own_envs, every=beginning.reconfiguration_freq)
    yield make_env(task, own_envs, builds=builds, privileged=beginning.privileged, **settings)
    eval_envs = config.evaluation.envs if distributed.leads() else 1
    yield make_env(task, eval_envs, builds=config.evaluation.builds, **settings)


def fitting_parts(beginning: Beginning, run: Run) -> dict[str, dict[str, Tensor]]:
    """Critics of the checkpoint; none, with an alarm, where they predict another return than this run's."""
    theirs = beginning.checkpoint.objective
    differences = beginning.objective.differences(theirs) if theirs else ""
    if differences and beginning.checkpoint.parts:
        run.alarm(f"the critics of {beginning.path} are for another return ({differences}), so new ones start")
        return {}
    return beginning.checkpoint.parts
