"""Evaluate any checkpoint: success, return, episode length and speed, for one or several numbers of denoising steps.

    python evaluate.py --checkpoint runs/reinflow-PickCube-v1-seed0 --num_inference_steps 1 2 4 8

    python evaluate.py --checkpoint runs/reinflow-PickCube-v1-seed0/kept/*

    python evaluate.py --compare runs/shortcut_flow-PickCube-v1-seed0 runs/reinflow-PickCube-v1-seed0

    python evaluate.py --checkpoint runs/shortcut_flow-PickCube-v1-seed0 --offline demos.h5 --held_out .1

Writes `evaluation.json`, which lists every episode, and `evaluation.png` next to the checkpoint, or into
`--output_dir`. Of several checkpoints it draws a curve over the steps of their training, `curve.json` and `curve.png`
(`--keep_every` of the training scripts keeps such checkpoints). `--compare` evaluates two checkpoints on the same
episodes, into `comparison.json`, and tells their paired difference with its 95 % interval (of successes Agresti &
Min's, of returns the normal one). `--capture_video` adds `evaluation.mp4`, or the two side by side in `comparison.mp4`.
`--offline` simulates nothing: it measures how far the policy's actions are from those of demonstrations, into
`offline.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reinflow.cli import Flat, run_script
from reinflow.envs import EnvConfig
from reinflow.training.config import EvalConfig

if TYPE_CHECKING:
    from reinflow.envs.recorder import Film
    from reinflow.policies.wrapped import Acting
    from reinflow.training.evaluation import Evaluation
    from reinflow.types import EnvSpec


FIRST_SEED = 30_000
"""kept apart from the seeds that choose checkpoints during training (docs/scripts.md lists all ranges)"""


@dataclass(frozen=True)
class Config:
    """Evaluate a checkpoint of any stage."""

    checkpoint: tuple[str, ...] = ()
    """file or run directory (its best_model.safetensors); several of one task are drawn as a curve"""
    compare: tuple[str, str] | None = None
    """two checkpoints of one task, evaluated and filmed from the same start states, instead of `checkpoint`"""
    offline: tuple[str, ...] = ()
    """demonstrations whose actions the policy's are compared with, instead of simulating the task"""
    held_out: float | None = None
    """--offline: share of the episodes, from the last one back, to look at, as Stage 1's --validation_share; None looks
    at all"""
    env: Flat[EnvConfig] = field(default_factory=EnvConfig)
    evaluation: Flat[EvalConfig] = field(default_factory=lambda: EvalConfig(eval_seed=FIRST_SEED))
    num_inference_steps: tuple[int, ...] = ()
    """denoising steps to evaluate, one evaluation each; empty takes the checkpoint's own number"""
    initial_noise_scale: float | None = None
    """std of the noise x_0 that a flow starts from, 0 to 1; None takes the checkpoint's"""
    best_of: int | None = None
    """chunks that are drawn per decision, of which the one with the highest Q is done; 1 is the policy alone, None is
    what the checkpoint was made for"""
    capture_video: bool = False
    """film the policy, which needs a Vulkan driver"""
    num_video_envs: int = 9
    """episodes of a video"""
    output_dir: str | None = None
    """where the results go; None puts them next to the last checkpoint"""
    cuda: bool = True
    """use a GPU when there is one"""
    cuda_graphs: bool = True
    """replay decisions as CUDA graphs there"""


def main(config: Config) -> None:
    """Evaluate one checkpoint or several, or compare two from the same start states."""
    if config.compare:
        compare(config, *config.compare)
    elif config.offline:
        measure_offline(config)
    elif len(config.checkpoint) > 1:
        evaluate_several(config)
    else:
        evaluate_one(config, *(config.checkpoint or ("",)))


def evaluate_one(config: Config, checkpoint: str) -> None:
    """A table row per number of denoising steps, and a video where asked for."""
    from reinflow.storage.checkpoint import resolve_checkpoint
    from reinflow.training.videos import write_film

    path = resolve_checkpoint(checkpoint)
    folder = Path(config.output_dir or path.parent)
    policy, task, _ = loaded(path, config)
    results = evaluated(policy, task, config, config.num_inference_steps or (policy.spec.num_inference_steps,))
    scale = policy.spec.initial_noise_scale
    rows = [row_of(num_steps, scale, result) for num_steps, result in results.items()]
    write_results(rows, config, path, folder, asdict(task))
    if config.capture_video:
        write_film(folder / "evaluation.mp4", filmed(policy, task, config))
        print(f"wrote {folder / 'evaluation.mp4'}")


def evaluate_several(config: Config) -> None:
    """The same episodes for every checkpoint, and their curve. UserError where they are of different tasks."""
    from reinflow.storage.checkpoint import resolve_checkpoint

    paths = [resolve_checkpoint(path) for path in config.checkpoint]
    found = of_one_task([loaded(path, config) for path in paths], "--checkpoint")
    folder = Path(config.output_dir or paths[-1].parent)
    rows = []
    for path, (policy, task, step) in zip(paths, found, strict=True):
        print(path)
        results = evaluated(policy, task, config, config.num_inference_steps or (policy.spec.num_inference_steps,))
        rows += rows_of(path, step, policy, results)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"eval_seed": config.evaluation.eval_seed, "results": rows}
    (folder / "curve.json").write_text(json.dumps(report, indent=2) + "\n")
    task = found[0][1]
    draw_curve(rows, folder / "curve.png", f"{task.env_id}, {rows[0]['episodes']} episodes", task.headline)
    print(f"wrote {folder / 'curve.json'} and {folder / 'curve.png'}")


def of_one_task(found: list[tuple[Policy, EnvSpec, int | None]], flag: str) -> list[tuple[Policy, EnvSpec, int | None]]:
    """What was found; UserError where two of it are of different tasks."""
    from reinflow.errors import UserError

    tasks = sorted({(task.env_id, task.control_mode) for _, task, _ in found})
    if len(tasks) > 1:
        raise UserError(f"{flag} needs policies of one task and control mode, not of {tasks[0]} and {tasks[1]}")
    return found


def rows_of(path: Path, step: int | None, policy: Policy, results: dict[int, Evaluation]) -> list[dict[str, Any]]:
    """What is written of a checkpoint among others; `step` is where its training was."""
    scale = policy.spec.initial_noise_scale
    return [
        {"checkpoint": str(path), "step": step, **row_of(num_steps, scale, result)}
        for num_steps, result in results.items()
    ]


def measure_offline(config: Config) -> None:
    """The error of the policy's actions on demonstrated episodes, a row per number of denoising steps."""
    from reinflow.data.config import DemoConfig
    from reinflow.data.demos import leaves_failures_out, load_demos
    from reinflow.errors import UserError
    from reinflow.storage.checkpoint import resolve_checkpoint
    from reinflow.training.action_error import action_error

    if config.held_out is not None and config.held_out <= 0:
        raise UserError(f"--held_out {config.held_out} looks at nothing: pass the share that Stage 1 held out")
    if len(config.checkpoint) != 1:
        raise UserError(f"--offline measures one --checkpoint, got {len(config.checkpoint)}: pass a run or a file")
    path = resolve_checkpoint(*config.checkpoint)
    folder = Path(config.output_dir or path.parent)
    policy, task, _ = loaded(path, config)
    wanted = {"env_id": task.env_id, "control_mode": task.control_mode, "obs_mode": task.obs_mode}
    # the episodes that Stage 1 chose from, so that the held-out ones are the same
    only_success = leaves_failures_out(DemoConfig(), task.headline, cloning=True)
    demos = load_demos(config.offline, only_success=only_success, **wanted)  # type: ignore[arg-type]
    demos.fit_(task)
    if config.held_out is not None:
        _, demos = demos.split(config.held_out)
    rows = []
    print(
        f"{'K':>3} {'action MSE':>11}  {len(demos.trajectories)} episodes, root of the MSE per dimension in env units"
    )
    for num_steps in config.num_inference_steps or (policy.spec.num_inference_steps,):
        error = action_error(policy, demos, task, num_steps, config.evaluation.eval_seed)
        print(f"{num_steps:>3} {error.mse:>11.5f}  {' '.join(f'{value:.4f}' for value in error.per_dim)}")
        rows.append(error.row(num_steps))
    folder.mkdir(parents=True, exist_ok=True)
    report = {"checkpoint": str(path), "demonstrations": list(config.offline), "held_out": config.held_out}
    (folder / "offline.json").write_text(json.dumps(report | {"results": rows}, indent=2) + "\n")
    print(f"wrote {folder / 'offline.json'}")


def compare(config: Config, first: str, second: str) -> None:
    """Two checkpoints side by side. UserError where they are of different tasks."""
    from reinflow.storage.checkpoint import resolve_checkpoint
    from reinflow.training.videos import write_comparison

    paths = [resolve_checkpoint(path) for path in (first, second)]
    found = of_one_task([loaded(path, config) for path in paths], "--compare")
    folder = Path(config.output_dir or paths[1].parent)
    results = [evaluated(policy, task, config, (policy.spec.num_inference_steps,)) for policy, task, _ in found]
    rows = [
        row
        for path, (policy, _, step), one in zip(paths, found, results, strict=True)
        for row in rows_of(path, step, policy, one)
    ]
    differences = paired(*(result for one in results for result in one.values()))
    folder.mkdir(parents=True, exist_ok=True)
    report = {"eval_seed": config.evaluation.eval_seed, "differences": differences, "results": rows}
    (folder / "comparison.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {folder / 'comparison.json'}")
    if config.capture_video:
        films = [filmed(policy, task, config) for policy, task, _ in found]
        write_comparison(folder / "comparison.mp4", films)
        print(f"wrote {folder / 'comparison.mp4'}, the first checkpoint on the left")


def paired(first: Evaluation, second: Evaluation) -> dict[str, dict[str, float]]:
    """Print and return what the second has more of over the same episodes, with half of the 95 % interval."""
    from reinflow.training.evaluation import mean_difference, paired_difference

    once = paired_difference(first.success_once, second.success_once)
    at_end = paired_difference(first.success_at_end, second.success_at_end)
    return_ = mean_difference(first.return_, second.return_)
    print(
        f"the second solves {100 * once[0]:+.1f} ± {100 * once[1]:.1f} points of the same {len(first.seed)} episodes "
        f"({100 * at_end[0]:+.1f} ± {100 * at_end[1]:.1f} at the end); "
        f"its return is {return_[0]:+.2f} ± {return_[1]:.2f} higher"
    )
    named = {"success_once": once, "success_at_end": at_end, "return": return_}
    return {name: {"difference": value, "half_interval": half} for name, (value, half) in named.items()}


def loaded(path: Path, config: Config) -> tuple[Acting, EnvSpec, int | None]:
    """A checkpoint's policy, the task that it was trained for, and the step of its run that it is of, where it says."""
    from reinflow.policies.wrapped import as_trained
    from reinflow.run.run import pick_device
    from reinflow.storage.checkpoint import load_policy

    policy, checkpoint = load_policy(path, pick_device(config.cuda))
    policy.spec = policy.spec.starting_with(config.initial_noise_scale)
    policy.replay_(config.cuda_graphs)
    acting = as_trained(policy, checkpoint.parts, checkpoint.extra, config.best_of)
    return acting, checkpoint.env_spec, checkpoint.meta.get("step")


def filmed(policy: Acting, task: EnvSpec, config: Config) -> Film:
    """A film of the policy from the start states of the evaluation's seed."""
    from reinflow.training.videos import Camera

    with closing(Camera(task, config.env, policy, config.evaluation.eval_seed, config.num_video_envs)) as camera:
        return camera.film(policy)


def evaluated(policy: Acting, task: EnvSpec, config: Config, steps: Sequence[int]) -> dict[int, Evaluation]:
    """By number of denoising steps; prints a table row for each."""
    from reinflow.envs import make_env
    from reinflow.training.evaluation import evaluate

    spec = policy.spec
    env = make_env(
        config.env.completed(task),
        num_envs=config.evaluation.envs,
        act_horizon=spec.act_horizon,
        obs_horizon=spec.obs_horizon,
        gamma=1.0,
        device=policy.device,
        builds=config.evaluation.builds,
    )
    results = {}
    with closing(env):
        spec.check_fits(env.spec)
        print(f"{'K':>3} {'success_once':>12} {'at_end':>7} {'return':>8} {'length':>7} {'calls/s':>8}  {task.env_id}")
        for num_steps in steps:
            if warning := policy.steps_warning(num_steps):
                print(f"warning: {warning}")
            results[num_steps] = evaluate(policy, env, num_inference_steps=num_steps, **config.evaluation.settings)
            row = row_of(num_steps, spec.initial_noise_scale, results[num_steps])
            print(
                f"{num_steps:>3} {row['success_once']:>12.3f} {row['success_at_end']:>7.3f} {row['return']:>8.2f} "
                f"{row['episode_len']:>7.1f} {row['policy_calls_per_second']:>8.1f}"
            )
    return results


def row_of(num_steps: int, initial_noise_scale: float, result: Evaluation) -> dict[str, Any]:
    """What is written of one evaluation."""
    return {
        "num_inference_steps": num_steps,
        "initial_noise_scale": initial_noise_scale,
        "best_of": result.best_of,
        "episodes": len(result.length),
        **{name.removeprefix("eval/"): value for name, value in result.metrics().items()},
        "policy_calls_per_episode": result.calls_per_episode,
        "policy_calls_per_second": result.calls_per_second,
        "seconds": result.seconds,
        "per_episode": result.episodes(),
    }


def write_results(rows: list[dict], config: Config, checkpoint: Path, folder: Path, env_spec: dict) -> None:
    """`evaluation.json` (settings and one row per number of steps) and `evaluation.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "checkpoint": str(checkpoint),
        "env": env_spec,
        "eval_seed": config.evaluation.eval_seed,
        "num_eval_envs": config.evaluation.num_eval_envs,
        "results": rows,
    }
    (folder / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    title = f"{env_spec['env_id']}, {rows[0]['episodes']} episodes"
    plot(rows, folder / "evaluation.png", title, env_spec["headline"])
    print(f"wrote {folder / 'evaluation.json'} and {folder / 'evaluation.png'}")


def plot(rows: list[dict], path: Path, title: str, headline: str) -> None:
    """Success, or the return of a task that is ranked by it, and speed over the number of denoising steps."""
    pyplot = drawing()
    steps = [str(row["num_inference_steps"]) for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    draw_scores(left, steps, rows, headline)
    left.set(xlabel="denoising steps K")
    right.bar(steps, [row["policy_calls_per_second"] for row in rows])
    right.set(xlabel="denoising steps K", ylabel="batched policy calls per second")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_curve(rows: list[dict], path: Path, title: str, headline: str) -> None:
    """The score of every checkpoint over the step of its run, or side by side where those are not told apart by it."""
    pyplot = drawing()
    by_k = {row["num_inference_steps"]: [] for row in rows}
    for row in rows:
        by_k[row["num_inference_steps"]].append(row)
    known = all(len({row["step"] for row in line} - {None}) == len(line) for line in by_k.values())
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for num_steps, line in by_k.items():
        ordered = sorted(line, key=lambda row: row["step"]) if known else line
        places = [row["step"] for row in ordered] if known else [label_of(row["checkpoint"]) for row in ordered]
        draw_scores(axes, places, ordered, headline, f", K = {num_steps}" if len(by_k) > 1 else "")
    axes.set(xlabel="step of the run" if known else "checkpoint")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def label_of(checkpoint: str) -> str:
    """The run of a best policy, and any other file by its own name."""
    path = Path(checkpoint)
    return path.parent.name if path.stem == "best_model" else path.stem


def drawing() -> Any:
    """Matplotlib's pyplot, without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_scores(axes: Any, places: Sequence[Any], rows: list[dict], headline: str, which: str = "") -> None:
    """What a task is ranked by, with 95 % intervals: its return, or both success rates."""
    from reinflow.training.evaluation import Z_95

    if headline == "return":
        values, errors = [row["return"] for row in rows], [Z_95 * row["return_error"] for row in rows]
        axes.errorbar(places, values, yerr=errors, marker="o", capsize=3, label=f"return{which}")
        axes.set(ylabel="return (95 % interval)")
        return
    for name, marker in (("success_once", "o"), ("success_at_end", "s")):
        rates = [row[name] for row in rows]
        errors = [Z_95 * (p * (1 - p) / row["episodes"]) ** 0.5 for p, row in zip(rates, rows, strict=True)]
        axes.errorbar(places, rates, yerr=errors, marker=marker, capsize=3, label=f"{name}{which}")
    axes.set(ylabel="success rate (95 % interval)", ylim=(0, 1.02))
    axes.legend(loc="lower right")


if __name__ == "__main__":
    run_script(main, Config, loads="torch and the simulator")
