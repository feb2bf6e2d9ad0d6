"""Evaluate any checkpoint: success, return, episode length and speed, for one or several numbers of denoising steps.

    python evaluate.py --checkpoint runs/reinflow-PickCube-v1-seed0 --num_inference_steps 1 2 4 8

Writes `evaluation.json` and `evaluation.png` next to the checkpoint, or into `--output_dir`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reinflow.cli import Flat, run_script
from reinflow.envs import EnvConfig
from reinflow.evaluation import EvalConfig


@dataclass(frozen=True)
class Config:
    """Evaluate a checkpoint of any stage."""

    checkpoint: str
    """file or run directory (its best_model.pt)"""
    env: Flat[EnvConfig] = field(default_factory=EnvConfig)
    evaluation: Flat[EvalConfig] = field(default_factory=EvalConfig)
    num_inference_steps: tuple[int, ...] = ()
    """denoising steps to evaluate, one evaluation each; empty takes the checkpoint's own number"""
    output_dir: str | None = None
    """where evaluation.json and evaluation.png go; None puts them next to the checkpoint"""
    cuda: bool = True
    """use a GPU when there is one"""


def main(config: Config) -> None:
    from reinflow.checkpoint import load_policy, resolve_checkpoint
    from reinflow.envs import make_env
    from reinflow.evaluation import evaluate
    from reinflow.run import pick_device

    path = resolve_checkpoint(config.checkpoint)
    device = pick_device(config.cuda)
    policy, checkpoint = load_policy(path, device)
    spec = policy.spec
    env = make_env(
        config.env.completed(checkpoint.env_spec),
        num_envs=config.evaluation.envs,
        act_horizon=spec.act_horizon,
        obs_horizon=spec.obs_horizon,
        gamma=1.0,
        device=device,
    )
    spec.check_fits(env.spec)
    rows = []
    print(f"{'K':>3} {'success_once':>12} {'at_end':>7} {'return':>8} {'length':>7} {'calls/s':>8}  {env.spec.env_id}")
    try:
        for num_steps in config.num_inference_steps or (spec.num_inference_steps,):
            result = evaluate(
                policy,
                env,
                episodes=config.evaluation.num_eval_episodes,
                seed=config.evaluation.eval_seed,
                num_inference_steps=num_steps,
            )
            rows.append(
                {
                    "num_inference_steps": num_steps,
                    "episodes": len(result.length),
                    **{name.removeprefix("eval/"): value for name, value in result.metrics().items()},
                    "policy_calls_per_episode": result.calls_per_episode,
                    "policy_calls_per_second": result.calls_per_second,
                    "seconds": result.seconds,
                }
            )
            row = rows[-1]
            print(
                f"{num_steps:>3} {row['success_once']:>12.3f} {row['success_at_end']:>7.3f} {row['return']:>8.2f} "
                f"{row['episode_len']:>7.1f} {row['policy_calls_per_second']:>8.1f}"
            )
    finally:
        env.close()
    write_results(rows, config, path, Path(config.output_dir or path.parent), asdict(env.spec))


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
    plot(rows, folder / "evaluation.png", f"{env_spec['env_id']}, {rows[0]['episodes']} episodes")
    print(f"wrote {folder / 'evaluation.json'} and {folder / 'evaluation.png'}")


def plot(rows: list[dict], path: Path, title: str) -> None:
    """Success and speed over the number of denoising steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [str(row["num_inference_steps"]) for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for name, marker in (("success_once", "o"), ("success_at_end", "s")):
        rates = [row[name] for row in rows]
        errors = [1.96 * (p * (1 - p) / row["episodes"]) ** 0.5 for p, row in zip(rates, rows, strict=True)]
        left.errorbar(steps, rates, yerr=errors, marker=marker, capsize=3, label=name)
    left.set(xlabel="denoising steps K", ylabel="success rate (95 % interval)", ylim=(0, 1.02))
    left.legend(loc="lower right")
    right.bar(steps, [row["policy_calls_per_second"] for row in rows])
    right.set(xlabel="denoising steps K", ylabel="batched policy calls per second")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    run_script(main, Config)
