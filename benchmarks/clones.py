"""Success of clones over the scale of x_0 and the denoising steps, for networks and sets of demonstrations.

What is finished is not run again. Start states are those of `learning`, whose clones it shares.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._compare import save
from benchmarks.learning import UNET_FLAGS, Clone, Flags, Lab
from reinflow.sweep.results import read_metrics

NETS: dict[str, Flags] = {"mlp": {}, "unet": UNET_FLAGS}
CLEAN, NOISE = (5, 10, 20, 60), 0.5
NOISY = (20, 60)
COLUMNS = ("success_once", "success_at_end", "return")


def measured(lab: Lab, clone: Clone, seed: int, scale: float, steps: list[int]) -> list[dict[str, Any]]:
    """A row per number of denoising steps."""
    run = lab.clone_dir(clone, seed) / "stage1"
    folder = run / f"x0_{scale:g}-K{'-'.join(map(str, steps))}"
    found = lab.evaluate(run, folder, initial_noise_scale=scale, num_inference_steps=steps)
    spread = {name: value for line in read_metrics(run) for name, value in line.items() if name.startswith("policy/")}
    where = {"env_id": clone.env_id, "net": clone.net, "num_demos": clone.num_demos, "seed": seed}
    return [
        {
            **where,
            "action_noise": clone.action_noise,
            "initial_noise_scale": scale,
            "num_inference_steps": row["num_inference_steps"],
            "episodes": row["episodes"],
            **{name: row[name] for name in COLUMNS},
            **spread,
        }
        for row in found
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown line per clone and number of steps, a column per scale: success once / at the end in %."""
    scales = sorted({row["initial_noise_scale"] for row in rows})
    keys = ("env_id", "net", "num_demos", "action_noise", "num_inference_steps")
    cells: dict[tuple, dict[float, list[dict[str, Any]]]] = {}
    for row in rows:
        cells.setdefault(tuple(row[key] for key in keys), {}).setdefault(row["initial_noise_scale"], []).append(row)
    lines = [
        "| task | net | demonstrations | noise | K | " + " | ".join(f"x_0 times {scale:g}" for scale in scales) + " |",
        "|" + "---|" * (len(keys) + len(scales)),
    ]
    for key, columns in cells.items():
        rates = [" / ".join(mean(columns[scale], name) for name in COLUMNS[:2]) for scale in scales]
        lines.append("| " + " | ".join([*map(str, key), *rates]) + " |")
    return "\n".join(lines)


def mean(rows: list[dict[str, Any]], name: str) -> str:
    """Average over seeds of one rate of the rows, in % with one decimal."""
    return f"{100 * sum(row[name] for row in rows) / len(rows):.1f}"


def main() -> None:
    """Train and evaluate every clone for every seed, `--jobs` side by side, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env_id", default="PickCube-v1", help="task")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="networks")
    parser.add_argument("--clean", type=int, nargs="*", default=CLEAN, help="numbers of clean demonstrations")
    parser.add_argument("--noisy", type=int, nargs="*", default=NOISY, help=f"and with noise {NOISE}")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.25, 0.5, 1.0], help="of x_0")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8], help="denoising steps K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one clone of every kind each")
    parser.add_argument("--jobs", type=int, default=2, help="clones side by side, one core each")
    parser.add_argument("--episodes", type=int, default=500, help="of every evaluation")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=None, help="write the rows to this JSON file")
    args = parser.parse_args()
    sets = [(number, 0.0) for number in args.clean] + [(number, NOISE) for number in args.noisy]
    clones = [Clone(args.env_id, *demos, flags=NETS[net], net=net) for demos in sets for net in args.nets]
    lab = Lab(args.folder, args.episodes)

    def job(pair: tuple[Clone, int]) -> list[dict[str, Any]]:
        lab.clone(*pair)
        return [row for scale in args.scales for row in measured(lab, *pair, scale, args.steps)]

    with ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(job, [(clone, seed) for clone in clones for seed in args.seeds])
        rows = [row for part in found for row in part]
    print(table(rows))
    save("clones", args, rows)


if __name__ == "__main__":
    main()
