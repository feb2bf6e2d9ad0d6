"""How many envs fit: peak memory and speed of the real Stage 3 over numbers of envs and minibatch sizes.

    CUDA_VISIBLE_DEVICES=0 python test_reinflow_memory_real.py --gpu 0 --env PickCube-v1
    python test_reinflow_memory_real.py --num_envs 64 256 1024 --minibatch_size 256

Each point runs in a process of its own, so one that runs out of memory is a row of the table and not the end. Without a
GPU it measures the host's memory.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reinflow.cli import USER_ERROR, run_script
from reinflow.errors import UserError
from reinflow.memory import Measurement, Point

FITS, TIGHT = 0.5, 0.8
"""shares of the memory up to which a point is recommended, or called aggressive"""
ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Config:
    """Profile the memory of Stage 3."""

    gpu: str | None = None
    """index of the GPU; None takes what CUDA_VISIBLE_DEVICES shows first"""
    env: str = "PickCube-v1"
    """ManiSkill task, Toy-v0 or SyntheticChunk-v0"""
    obs_mode: str = "state"
    """observations: `state`, `rgb`, `depth`, or several joined by +"""
    freeze_visual_encoder: bool | None = None
    """store what the encoder makes of pictures instead of the pictures, as Stage 3 does under this flag; None measures
    both, one after the other"""
    sim_backend: str = "auto"
    """simulator; auto is physx_cuda with a GPU, else physx_cpu_batched"""
    num_envs: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """numbers of envs to measure"""
    minibatch_size: tuple[int, ...] = (256,)
    """minibatch sizes to measure with each of them"""
    micro_batch_size: int | None = None
    """rows of a minibatch evaluated at a time, as in Stage 3; None takes all at once"""
    rollout_steps: int = 16
    """decisions per env and iteration"""
    num_inference_steps: int = 8
    """denoising steps K"""
    net: str = "unet"
    """velocity network, as Stage 1 has them"""
    timeout: float = 600.0
    """seconds that a point may take"""
    output: str = "runs/memory"
    """the table is written to this path with .csv, the chart with .png"""


@dataclass
class Row:
    """One point of the table."""

    point: Point
    measured: Measurement | None
    verdict: str = ""
    """of a point that failed, the reason"""

    @property
    def share(self) -> float:
        """Used part of the memory."""
        return self.measured.used_mb / self.measured.limit_mb if self.measured else 1.0


def main(config: Config) -> None:
    """Measure every combination of numbers of envs and minibatch sizes, and write the table."""
    points = [
        Point(
            config.env,
            config.obs_mode,
            config.sim_backend,
            num_envs,
            minibatch_size,
            config.rollout_steps,
            config.num_inference_steps,
            config.net,
            frozen,
            config.micro_batch_size,
        )
        for num_envs in sorted(config.num_envs)
        for minibatch_size in sorted(config.minibatch_size)
        for frozen in encoders(config)
    ]
    if not points or min(min(point.num_envs, point.minibatch_size, point.rollout_steps) for point in points) < 1:
        raise UserError("--num_envs, --minibatch_size and --rollout_steps must be at least 1")
    print(f"{config.env}, {config.obs_mode}, {config.net}, K = {config.num_inference_steps}", end=", ")
    print(f"{config.rollout_steps} decisions per env and iteration")
    titles = f"{'torch MB':>9} {'device MB':>9} {'host MB':>8} {'env steps/s':>11}  used"
    print(f"{'envs':>6} {'minibatch':>9} {'encoder':>8} {titles}")
    rows = []
    for point in points:
        rows.append(run_point(point, config))
        print(line(rows[-1]), flush=True)
    judge(rows)
    print()
    for row in rows:
        encoder = "" if row.point.obs_mode == "state" else f", encoder {encoder_of(row.point)}"
        print(f"{row.point.num_envs:>6} envs, minibatch {row.point.minibatch_size}{encoder}: {row.verdict}")
    if all(row.measured is None or row.measured.device_peak_mb is None for row in rows):
        print("no GPU is visible: what was measured is the host's memory, and a GPU's is not known from it")
    write_csv(rows, Path(config.output).with_suffix(".csv"))
    plot(rows, Path(config.output).with_suffix(".png"), config)
    best = next((row.point for row in rows if row.verdict == "recommended"), None)
    if best:
        print(
            f"\npython train_online_finetune.py --env_id {best.env_id} --num_envs {best.num_envs} "
            f"--minibatch_size {best.minibatch_size} --num_inference_steps {best.num_inference_steps} "
            f"--rollout_steps {best.rollout_steps} --pretrained_path PATH"
            f"{' --freeze_visual_encoder' if best.freeze_visual_encoder else ''}"
            f"{f' --micro_batch_size {best.micro_batch_size}' if best.micro_batch_size else ''}"
        )


def encoders(config: Config) -> tuple[bool, ...]:
    """Whether the encoder is frozen, of each point: with pictures both, unless the flag says which."""
    if config.freeze_visual_encoder is not None:
        return (config.freeze_visual_encoder,)
    return (False,) if config.obs_mode == "state" else (True, False)


def encoder_of(point: Point) -> str:
    """What becomes of the image encoder, in a word."""
    if point.obs_mode == "state":
        return "none"
    return "frozen" if point.freeze_visual_encoder else "trained"


def run_point(point: Point, config: Config) -> Row:
    """Measure in a child; UserError where the point can't be made at all, as for an unknown task."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if config.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = config.gpu
    command = [sys.executable, "-m", "reinflow.memory", json.dumps(asdict(point))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=config.timeout, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Row(point, None, f"took more than {config.timeout:.0f} s: raise --timeout")
    if done.returncode == USER_ERROR:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    if done.returncode:
        return Row(point, None, failure(done.returncode, done.stderr))
    return Row(point, Measurement(**json.loads(done.stdout.splitlines()[-1])))


def failure(code: int, errors: str) -> str:
    """Why a child ended, in a few words; the kernel kills with signal 9 where the host's memory ran out."""
    if code == -9 or "out of memory" in errors.lower() or "MemoryError" in errors:
        return "out of memory"
    lines = errors.strip().splitlines()
    return f"failed (exit {code}): {lines[-1] if lines else 'no output'}"


def judge(rows: list[Row]) -> None:
    """Name the fastest point in half of the memory; those with fewer envs are conservative, larger ones risky."""
    fitting = [row for row in rows if row.measured and row.share <= FITS]
    best = max(fitting, key=lambda row: row.measured.env_steps_per_s if row.measured else 0.0, default=None)
    for row in rows:
        if row.measured is None:
            continue
        if row is best:
            row.verdict = "recommended"
        elif row.share > TIGHT:
            row.verdict = "maximum"
        elif row.share > FITS:
            row.verdict = "aggressive"
        else:
            smaller = best is not None and row.point.num_envs < best.point.num_envs
            row.verdict = "conservative" if smaller else "fits, slower"


def line(row: Row) -> str:
    """A point as a line of the table: MB, env steps per second and share of memory, or why it has none."""
    head = f"{row.point.num_envs:>6} {row.point.minibatch_size:>9} {encoder_of(row.point):>8}"
    if row.measured is None:
        return f"{head} {row.verdict}"
    m = row.measured
    cells = [f"{value:>9,.0f}" if value is not None else f"{'-':>9}" for value in (m.torch_peak_mb, m.device_peak_mb)]
    return f"{head} {' '.join(cells)} {m.host_peak_mb:>8,.0f} {m.env_steps_per_s:>11,.0f}  {row.share:.0%}"


def write_csv(rows: list[Row], path: Path) -> None:
    """A line per point with its settings, measurements and verdict."""
    table: list[dict[str, Any]] = [
        {**asdict(row.point), **(asdict(row.measured) if row.measured else {}), "verdict": row.verdict} for row in rows
    ]
    names = list(dict.fromkeys(name for entry in table for name in entry))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(table)
    print(f"wrote {path}")


def plot(rows: list[Row], path: Path, config: Config) -> None:
    """A bar of used memory per point; a point that failed is an empty one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    names = [f"{row.point.num_envs}\n/{row.point.minibatch_size}" for row in rows]
    if config.obs_mode != "state":
        names = [f"{name}\n{encoder_of(row.point)}" for name, row in zip(names, rows, strict=True)]
    bars = axes.bar(names, [row.measured.used_mb / 1024 if row.measured else 0.0 for row in rows])
    axes.bar_label(bars, [row.verdict.split(" (")[0] for row in rows], fontsize=7)
    where = "GPU" if any(row.measured and row.measured.device_peak_mb for row in rows) else "host"
    axes.set(xlabel="envs / minibatch size", ylabel=f"peak {where} memory, GB")
    axes.set_title(f"{config.env}, {config.obs_mode}, {config.net}, K = {config.num_inference_steps}", fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main, Config)
