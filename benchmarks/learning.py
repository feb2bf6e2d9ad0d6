"""Learning curves of the three stages: recipes times seeds, each run by the project's own scripts, into one JSON file.

Recipes of the same task and network share the demonstrations and the checkpoints of Stages 1 and 2 of a seed. What is
finished is not run again, so an interrupted call goes on where it stopped. Each job has one core (one torch thread, the
simulator in the same process), `--jobs` run side by side.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks._machine import fingerprint
from reinflow.status import read_status
from reinflow.sweep.results import SUCCESS, read_metrics

ROOT = Path(__file__).resolve().parent.parent
EVAL_SEED = 20_000
"""start states of the reported success, which no run trains or selects on"""
GOOD = 0.9
"""success whose time is reported"""


@dataclass(frozen=True)
class Clone:
    """Stages 0 to 2 of a recipe."""

    env_id: str = "PickCube-v1"
    num_demos: int = 20
    flags: tuple[str, ...] = ()
    """of Stage 1, besides the quick start's preset"""
    net: str = "mlp"
    collecting: tuple[str, ...] = ()
    """flags of Stage 0"""

    @property
    def name(self) -> str:
        words = [self.env_id, self.net, *(word.strip("-") for word in self.collecting)]
        return "-".join(words)


@dataclass(frozen=True)
class Recipe:
    """Stage 3 from a clone."""

    name: str
    total_timesteps: int
    clone: Clone = field(default_factory=Clone)
    flags: tuple[str, ...] = ()
    """of Stage 3"""
    weighted: bool = True
    """start from Stage 2 instead of Stage 1"""


ABLATION_STEPS = 95_000
"""four iterations, the first of them warm-up: where the default is halfway from its clone to its end"""

UNET = Clone(net="unet", flags=("--net", "unet", "--unet_dims", "32", "64", "128", "--total_iters", "2500"))
"""a quarter of the default's parameters, which is what a core trains in minutes"""
MIXED = Clone(num_demos=60, collecting=("--action_noise", "0.5", "--no_only_success"))
"""demonstrations of mixed quality, failures among them: what Stage 2 could tell apart"""
SUITES: dict[str, list[Recipe]] = {
    "pick": [Recipe("pick-mlp", 1_250_000), Recipe("pick-unet", 600_000, UNET)],
    "tasks": [
        Recipe("push", 300_000, Clone("PushCube-v1")),
        Recipe("pull", 300_000, Clone("PullCube-v1")),
        Recipe("stack", 600_000, Clone("StackCube-v1")),
        Recipe("lift", 600_000, Clone("LiftPegUpright-v1")),
    ],
    "stage2": [
        Recipe(f"{data} {how} Stage 2", ABLATION_STEPS, clone, weighted=how == "with")
        for data, clone in (("expert-20", Clone()), ("mixed-60", MIXED))
        for how in ("with", "without")
    ],
    "ablation": [
        Recipe("default", ABLATION_STEPS),
        Recipe("without Stage 2", ABLATION_STEPS, weighted=False),
        Recipe("no critic warm-up", ABLATION_STEPS, flags=("--critic_warmup_steps", "0")),
        Recipe("fixed noise", ABLATION_STEPS, flags=("--lr_noise", "0", "--noise_decay_type", "constant")),
        *(Recipe(f"K = {k}", ABLATION_STEPS, flags=("--num_inference_steps", str(k))) for k in (1, 2, 8)),
        *(Recipe(f"{how} log-ratio", ABLATION_STEPS, flags=("--logprob_reduction", how)) for how in ("sum", "mean")),
    ],
}


class Lab:
    """Runs scripts below one folder and reads what they wrote."""

    def __init__(self, folder: Path, episodes: int):
        self.folder = folder
        self.episodes = episodes
        self._preparing: defaultdict[Path, Lock] = defaultdict(Lock)

    def run(self, recipe: Recipe, seed: int) -> None:
        """All stages; recipes that share a clone make it once."""
        with self._preparing[self.clone_dir(recipe.clone, seed)]:
            self.prepare(recipe.clone, seed)
        self.fine_tune(recipe, seed)

    def prepare(self, clone: Clone, seed: int) -> None:
        """Demonstrations, Stage 1 and Stage 2, each evaluated."""
        folder = self.clone_dir(clone, seed)
        demos = folder / "demos.h5"
        common = ["--preset", "quickstart", "--demo_path", str(demos)]
        if not demos.exists():
            command = ["collect_demos.py", "--env_id", clone.env_id, "--num_demos", str(clone.num_demos)]
            command += [*clone.collecting, "--seed", str(1000 * seed), "--output", str(demos)]
            self.call(command, folder / "demos.log")
        self.train("train_shortcut_flow.py", folder / "stage1", seed, [*common, "--env_id", clone.env_id, *clone.flags])
        source = ["--pretrained_path", str(folder / "stage1")]
        self.train("train_aw_shortcut_flow.py", folder / "stage2", seed, [*common, *source])

    def fine_tune(self, recipe: Recipe, seed: int) -> None:
        source = self.clone_dir(recipe.clone, seed) / ("stage2" if recipe.weighted else "stage1")
        flags = ["--pretrained_path", str(source), "--total_timesteps", str(recipe.total_timesteps), *recipe.flags]
        self.train("train_online_finetune.py", self.run_dir(recipe, seed), seed, flags)

    def train(self, script: str, run: Path, seed: int, flags: Sequence[str]) -> None:
        """One stage and the evaluation of its best checkpoint, unless both are there."""
        if not self.is_done(run):
            place = ["--runs_dir", str(run.parent), "--exp_name", run.name, "--overwrite", "--seed", str(seed)]
            alone = ["--num_threads", "1", "--num_workers", "0"]
            self.call([script, *flags, *place, *alone], run.with_suffix(".log"))
        if not (run / "evaluation.json").exists():
            command = ["evaluate.py", "--checkpoint", str(run), "--num_eval_episodes", str(self.episodes)]
            command += ["--eval_seed", str(EVAL_SEED), "--num_workers", "0"]
            self.call(command, run.with_suffix(".eval.log"))

    def call(self, command: list[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"$ python {' '.join(command)}", flush=True)
        with log.open("w") as output:
            argv = [sys.executable, str(ROOT / command[0]), *command[1:]]
            subprocess.run(argv, stdout=output, stderr=subprocess.STDOUT, check=True)

    def clone_dir(self, clone: Clone, seed: int) -> Path:
        return self.folder / f"{clone.name}-seed{seed}"

    def run_dir(self, recipe: Recipe, seed: int) -> Path:
        return self.folder / f"{recipe.name.replace(' ', '_')}-seed{seed}"

    def is_done(self, run: Path) -> bool:
        return read_status(run / "status.json").get("state") == "done"

    def row(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """What one run came to."""
        run, clone = self.run_dir(recipe, seed), self.clone_dir(recipe.clone, seed)
        config = json.loads((run / "config.json").read_text())
        curve = evaluations(run)
        good = next((point for point in curve if point["success_once"] >= GOOD), None)
        return {
            "recipe": recipe.name,
            "env_id": recipe.clone.env_id,
            "net": recipe.clone.net,
            "seed": seed,
            "stage1": result(clone / "stage1"),
            "stage2": result(clone / "stage2"),
            "stage3": result(run),
            "curve": curve,
            "steps_to_90": good["env_steps"] if good else None,
            "minutes_to_90": good["minutes"] if good else None,
            "command": self.portable(config["argv"]),
            "commit": config["git_commit"],
        }

    def portable(self, argv: list[str]) -> str:
        """A command line without the paths of the machine that ran it."""
        words = [Path(argv[0]).name, *(word.replace(str(self.folder), "runs/learning") for word in argv[1:])]
        return shlex.join(["python", *words])


def evaluations(run: Path) -> list[dict[str, float]]:
    """The evaluations of a run while it trained; minutes since the first one, which is the pretrained policy's."""
    points = [line for line in read_metrics(run) if SUCCESS in line]
    return [
        {
            "env_steps": line["step"],
            "minutes": (line["time"] - points[0]["time"]) / 60,
            "success_once": line[SUCCESS],
            "success_at_end": line["eval/success_at_end"],
        }
        for line in points
    ]


def result(run: Path) -> dict[str, float]:
    row = json.loads((run / "evaluation.json").read_text())["results"][0]
    return {name: row[name] for name in ("episodes", "success_once", "success_at_end", "return")}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown line per recipe: means over seeds, with their range."""
    lines = [
        "| recipe | seeds | Stage 1 | Stage 2 | Stage 3 | at end | env steps to 90 % | minutes |",
        "|" + "---|" * 8,
    ]
    for name in dict.fromkeys(row["recipe"] for row in rows):
        mine = [row for row in rows if row["recipe"] == name]
        cells = [spread([row[stage]["success_once"] for row in mine]) for stage in ("stage1", "stage2", "stage3")]
        cells.append(spread([row["stage3"]["success_at_end"] for row in mine]))
        reached = [row for row in mine if row["steps_to_90"] is not None]
        for key, unit in (("steps_to_90", 1000), ("minutes_to_90", 1)):
            values = ", ".join(f"{row[key] / unit:.0f}{'k' if unit > 1 else ''}" for row in reached)
            cells.append(values + (f" ({len(mine) - len(reached)} never)" if len(reached) < len(mine) else ""))
        lines.append(f"| {name} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(rates: list[float]) -> str:
    mean = f"{100 * statistics.mean(rates):.1f}"
    return mean if len(rates) == 1 else f"{mean} ({100 * min(rates):.1f}-{100 * max(rates):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=list(SUITES), help="names of suites or of single recipes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of every recipe each")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--episodes", type=int, default=500, help="episodes of every reported success")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=None, help="write the rows to this JSON file")
    args = parser.parse_args()
    recipes = [r for suite, members in SUITES.items() for r in members if {suite, r.name} & set(args.recipes)]
    if not recipes:
        parser.error(f"no recipe is named {' or '.join(args.recipes)}")
    lab = Lab(args.folder, args.episodes)
    machine = fingerprint()
    pairs = [(recipe, seed) for recipe in recipes for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        for future in [pool.submit(lab.run, recipe, seed) for recipe, seed in pairs]:
            future.result()
    rows = [lab.row(recipe, seed) for recipe, seed in pairs]
    print(table(rows))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"benchmark": "learning", "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
