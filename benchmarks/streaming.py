"""Peak memory of Stage 1 on a file of pictures that is larger than it may hold: the file is streamed.

A file of SyntheticChunk-v0 demonstrations is generated (noise, so nothing compresses), then cloned for a few iterations
in a process of its own, held to `--max_picture_gb` of pictures.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from benchmarks._machine import fingerprint

ROOT = Path(__file__).resolve().parent.parent
STEPS, SIZE, STATE, ACTION = 100, 128, 42, 7


def write_demos(path: Path, gigabytes: float) -> int:
    """As many trajectories as make up the size; returns their number."""
    frame = SIZE * SIZE * 3
    count = int(gigabytes * 1e9 / (frame * (STEPS + 1))) + 1
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(count):
            group = file.create_group(f"traj_{number}", track_order=True)
            rgb = rng.integers(0, 256, (STEPS + 1, SIZE, SIZE, 3), np.uint8)
            group.create_dataset("obs/sensor_data/camera/rgb", data=rgb)
            group.create_dataset("obs/state", data=rng.normal(size=(STEPS + 1, STATE)).astype(np.float32))
            group.create_dataset("actions", data=rng.uniform(-1, 1, (STEPS, ACTION)).astype(np.float32))
            for name in ("success", "terminated", "truncated"):
                group.create_dataset(name, data=np.zeros(STEPS, bool))
    settings = {"obs_mode": "rgb", "control_mode": "synthetic"}
    about = {"env_id": "SyntheticChunk-v0", "env_kwargs": settings, "max_episode_steps": STEPS}
    path.with_suffix(".json").write_text(json.dumps({"env_info": about, "episodes": []}))
    return count


def main() -> None:
    """Generate the file, train on it in a child process and print that process's peak memory in GB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.2, help="size of the generated file")
    parser.add_argument("--max_picture_gb", type=float, default=0.5, help="GB of pictures that may be held")
    parser.add_argument("--iters", type=int, default=20, help="gradient iterations")
    parser.add_argument("--batch_size", type=int, default=64, help="rows per iteration")
    parser.add_argument("--folder", type=Path, default=None, help="where the file goes; default is a temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="write the result to this JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        demos = Path(folder) / "demos.h5"
        count = write_demos(demos, args.gigabytes)
        size = demos.stat().st_size / 1e9
        command = [sys.executable, str(ROOT / "train_shortcut_flow.py"), "--preset", "quickstart", "--net", "mlp"]
        command += ["--env_id", "SyntheticChunk-v0", "--obs_mode", "rgb", "--demo_path", str(demos)]
        command += ["--runs_dir", folder, "--total_iters", str(args.iters), "--batch_size", str(args.batch_size)]
        command += ["--max_picture_gb", str(args.max_picture_gb), "--num_eval_envs", "2", "--num_eval_episodes", "2"]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{size:.1f} GB of pictures in {count} trajectories, {args.iters} iterations of {args.batch_size} rows")
    print(f"peak resident memory {peak:.2f} GB, {seconds:.0f} s in all")
    if args.out:
        row = {
            "benchmark": "streaming",
            "settings": {key: value for key, value in vars(args).items() if key not in ("out", "folder")},
            "file_gb": size,
            "peak_resident_gb": peak,
            "seconds": seconds,
            "machine": fingerprint(),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
