"""Learning curves of the three stages: recipes times seeds, each run by the project's own scripts, into one JSON file.

Recipes of the same task and network share the demonstrations and the checkpoints of Stages 1 and 2 of a seed. What is
finished is not run again, so an interrupted call goes on where it stopped. Each job has one core (one torch thread, the
simulator in the same process), `--jobs` run side by side.

`--recipes` takes names, and JSON files that hold a list of further recipes:
[{"name": "bold", "total_timesteps": 100000, "flags": {"lr": 2e-4}, "clone": {"num_demos": 5}, "weighted": false}]
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks._machine import fingerprint
from reinflow.cli import as_words
from reinflow.run.status import read_status
from reinflow.sweep.results import read_metrics

ROOT = Path(__file__).resolve().parent.parent
EVAL_SEED = 20_000
"""start states of the reported success, which no run trains or selects on"""
GOALS = (0.9, 0.95, 0.98)
"""successes whose times are reported"""
SUCCESS = "eval/success_once"
Flags = dict[str, Any]
"""of a script, by name"""


@dataclass(frozen=True)
class Clone:
    """Stages 0 to 2 of a recipe."""

    env_id: str = "PickCube-v1"
    num_demos: int = 20
    action_noise: float = 0.0
    """of the demonstrations, whose failures then count as well"""
    flags: Flags = field(default_factory=dict)
    """of Stage 1, besides the quick start's preset"""
    net: str = "mlp"
    weighting: Flags = field(default_factory=dict)
    """of Stage 2, besides the quick start's preset"""

    @property
    def name(self) -> str:
        """Task, network and kind of demonstrations, as a folder is called."""
        number = "" if self.num_demos == 20 else f"-{self.num_demos}demos"
        return f"{self.env_id}-{self.net}{number}" + (f"-noise{self.action_noise:g}" if self.action_noise else "")

    @property
    def collection(self) -> Flags:
        """Flags of Stage 0."""
        noisy = {"action_noise": self.action_noise, "only_success": False} if self.action_noise else {}
        return {"env_id": self.env_id, "num_demos": self.num_demos, **noisy}


@dataclass(frozen=True)
class Recipe:
    """Stage 3 from a clone."""

    name: str
    total_timesteps: int
    clone: Clone = field(default_factory=Clone)
    flags: Flags = field(default_factory=dict)
    """of Stage 3"""
    weighted: bool = True
    """start from Stage 2 instead of Stage 1"""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """A recipe from JSON, whose `clone` is an object of its own; what it leaves out has its default."""
        return cls(**data | {"clone": Clone(**data.get("clone", {}))})


ABLATION_STEPS = 95_000
"""four iterations, the first of them warm-up: where the default is halfway from its clone to its end"""

UNET_FLAGS: Flags = {"net": "unet", "unet_dims": [32, 64, 128], "total_iters": 2500}
"""a quarter of the default's parameters, which is what a core trains in minutes"""
UNET = Clone(net="unet", flags=UNET_FLAGS)
MIXED = Clone(num_demos=60, action_noise=0.5)
"""demonstrations of mixed quality, failures among them: what Stage 2 could tell apart"""

LARGE: Flags = {
    "rollout_steps": 48,
    "minibatch_size": 768,
    "critic_warmup_steps": 20_000,
    "eval_freq": 1,
    "num_eval_episodes": 500,
}
"""iterations of 24k env steps, each of them evaluated"""
SMALL: Flags = {
    "rollout_steps": 12,
    "minibatch_size": 512,
    "critic_warmup_steps": 6_000,
    "eval_freq": 2,
    "num_eval_episodes": 500,
}
"""iterations of 6k env steps, every other one evaluated"""
CENTRE: Flags = {"initial_noise_scale": 0.0}


def iterations(name: str, **flags: Any) -> Recipe:
    """300k env steps from Stage 1."""
    return Recipe(name, 300_000, flags=flags, weighted=False)


SUITES: dict[str, list[Recipe]] = {
    "pick": [Recipe("pick-mlp", 1_250_000), Recipe("pick-unet", 600_000, UNET)],
    "tasks": [
        Recipe("push", 300_000, Clone("PushCube-v1")),
        Recipe("pull", 300_000, Clone("PullCube-v1")),
        Recipe("stack", 600_000, Clone("StackCube-v1")),
        Recipe("lift", 600_000, Clone("LiftPegUpright-v1")),
    ],
    "stage2": [
        recipe
        for data, clone in (("expert-20", Clone()), ("mixed-60", MIXED))
        for recipe in (
            Recipe(f"{data} without Stage 2", ABLATION_STEPS, clone, weighted=False),
            Recipe(f"{data} unweighted Stage 2", ABLATION_STEPS, replace(clone, weighting={"beta": 0})),
            Recipe(f"{data} with Stage 2", ABLATION_STEPS, clone),
        )
    ],
    "ablation": [
        Recipe("default", ABLATION_STEPS),
        Recipe("without Stage 2", ABLATION_STEPS, weighted=False),
        Recipe("no critic warm-up", ABLATION_STEPS, flags={"critic_warmup_steps": 0}),
        Recipe("fixed noise", ABLATION_STEPS, flags={"lr_noise": 0, "noise_decay_type": "constant"}),
        *(Recipe(f"K = {k}", ABLATION_STEPS, flags={"num_inference_steps": k}) for k in (1, 2, 8)),
        *(Recipe(f"{how} log-ratio", ABLATION_STEPS, flags={"logprob_reduction": how}) for how in ("sum", "mean")),
    ],
    "iterations": [
        *(
            iterations(f"{size} iterations from x_0 times {scale:g}", **flags, initial_noise_scale=scale)
            for size, flags in (("large", LARGE), ("small", SMALL))
            for scale in (1.0, 0.0)
        ),
        *(iterations(f"small, {n} epochs", **SMALL, **CENTRE, ppo_epochs=n) for n in (2, 8)),
        *(iterations(f"small, lr {lr:g}", **SMALL, **CENTRE, lr=lr) for lr in (4e-5, 1.6e-4)),
        iterations("small, half the noise", **SMALL, **CENTRE, min_noise_std=0.05, max_noise_std=0.2),
        iterations("small, noise decays in 300k", **SMALL, **CENTRE, noise_decay_steps=300_000),
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
        clone = self.clone_dir(recipe.clone, seed)
        with self._preparing[clone]:
            self.clone(recipe.clone, seed)
            self.evaluate(clone / "stage1", clone / "stage1")
            if recipe.weighted:
                self.weight(recipe.clone, seed)
        self.fine_tune(recipe, seed)

    def clone(self, clone: Clone, seed: int) -> None:
        """Demonstrations and Stage 1."""
        folder = self.clone_dir(clone, seed)
        demos = folder / "demos.h5"
        if not demos.exists():
            flags = clone.collection | {"seed": 1000 * seed, "output": demos}
            self.call(["collect_demos.py", *as_words(flags)], folder / "demos.log")
        flags = {"preset": "quickstart", "demo_path": demos, "env_id": clone.env_id, **clone.flags}
        self.train("train_shortcut_flow.py", folder / "stage1", seed, flags)

    def weight(self, clone: Clone, seed: int) -> None:
        """Stage 2 of a clone, evaluated."""
        folder, run = self.clone_dir(clone, seed), self.weighted_dir(clone, seed)
        flags = {"preset": "quickstart", "demo_path": folder / "demos.h5", "pretrained_path": folder / "stage1"}
        self.train("train_aw_shortcut_flow.py", run, seed, {**flags, **clone.weighting})
        self.evaluate(run, run)

    def fine_tune(self, recipe: Recipe, seed: int) -> None:
        """Stage 3, evaluated."""
        clone, run = recipe.clone, self.run_dir(recipe, seed)
        source = self.weighted_dir(clone, seed) if recipe.weighted else self.clone_dir(clone, seed) / "stage1"
        flags = {"pretrained_path": source}
        flags |= {"total_timesteps": recipe.total_timesteps, **recipe.flags}
        self.train("train_online_finetune.py", run, seed, flags)
        self.evaluate(run, run)

    def train(self, script: str, run: Path, seed: int, flags: Flags) -> None:
        """One stage, unless it is done."""
        if not self.is_done(run):
            place = {"runs_dir": run.parent, "exp_name": run.name, "overwrite": True, "seed": seed}
            alone = {"num_threads": 1, "num_workers": 0}
            self.call([script, *as_words({**flags, **place, **alone})], run.with_suffix(".log"))

    def evaluate(self, run: Path, folder: Path, **flags: Any) -> list[dict[str, Any]]:
        """Rows of a run's best checkpoint, evaluated into `folder` unless that is done."""
        report = folder / "evaluation.json"
        if not report.exists():
            where = {"checkpoint": run, "output_dir": folder}
            how = {"num_eval_episodes": self.episodes, "eval_seed": EVAL_SEED, "num_workers": 0}
            self.call(["evaluate.py", *as_words({**where, **how, **flags})], folder.with_suffix(".eval.log"))
        return json.loads(report.read_text())["results"]

    def call(self, command: list[str], log: Path) -> None:
        """Run a script with its flags, its output going to `log`; CalledProcessError where it fails."""
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"$ python {' '.join(command)}", flush=True)
        with log.open("w") as output:
            argv = [sys.executable, str(ROOT / command[0]), *command[1:]]
            subprocess.run(argv, stdout=output, stderr=subprocess.STDOUT, check=True)

    def clone_dir(self, clone: Clone, seed: int) -> Path:
        """Where Stages 0 and 1 of a clone write for one seed, for all recipes that start from it."""
        return self.folder / f"{clone.name}-seed{seed}"

    def weighted_dir(self, clone: Clone, seed: int) -> Path:
        """Where Stage 2 writes: below the clone, named by the flags of its weighting."""
        words = ["stage2", *(word.strip("-") for word in as_words(clone.weighting))]
        return self.clone_dir(clone, seed) / "-".join(words)

    def run_dir(self, recipe: Recipe, seed: int) -> Path:
        """Where Stage 3 of a recipe writes for one seed."""
        return self.folder / f"{recipe.name.replace(' ', '_')}-seed{seed}"

    def is_done(self, run: Path) -> bool:
        """Whether the status file of a run says that it came to its end."""
        return read_status(run / "status.json").get("state") == "done"

    def row(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """What one run came to."""
        run, clone = self.run_dir(recipe, seed), self.clone_dir(recipe.clone, seed)
        config = json.loads((run / "config.json").read_text())
        curve = evaluations(run)
        reached = {f"{100 * goal:.0f}": first(curve, goal) for goal in GOALS}
        return {
            "recipe": recipe.name,
            "env_id": recipe.clone.env_id,
            "net": recipe.clone.net,
            "seed": seed,
            "stage1": result(clone / "stage1"),
            "stage2": result(self.weighted_dir(recipe.clone, seed)) if recipe.weighted else None,
            "stage3": result(run),
            "curve": curve,
            "flags": recipe.flags,
            **{f"steps_to_{goal}": point.get("env_steps") for goal, point in reached.items()},
            **{f"minutes_to_{goal}": point.get("minutes") for goal, point in reached.items()},
            **{f"training_minutes_to_{goal}": point.get("training_minutes") for goal, point in reached.items()},
            "command": self.portable(config["argv"]),
            "commit": config["git_commit"],
        }

    def portable(self, argv: list[str]) -> str:
        """A command line without the paths of the machine that ran it."""
        words = [Path(argv[0]).name, *(word.replace(str(self.folder), "runs/learning") for word in argv[1:])]
        return shlex.join(["python", *words])


def evaluations(run: Path) -> list[dict[str, float]]:
    """The evaluations of a run while it trained; minutes since the first one, which is the pretrained policy's.

    `training_minutes` leaves the evaluations out.
    """
    points = [line for line in read_metrics(run) if SUCCESS in line]
    spent = list(accumulate((line["time/eval"] for line in points[1:]), initial=0.0))
    return [
        {
            "env_steps": line["step"],
            "minutes": (line["time"] - points[0]["time"]) / 60,
            "training_minutes": (line["time"] - points[0]["time"] - evaluating) / 60,
            "success_once": line[SUCCESS],
            "success_at_end": line["eval/success_at_end"],
        }
        for line, evaluating in zip(points, spent, strict=True)
    ]


def first(curve: list[dict[str, float]], goal: float) -> dict[str, float]:
    """The first evaluation with this success; empty where there was none."""
    return next((point for point in curve if point["success_once"] >= goal), {})


def result(run: Path) -> dict[str, float]:
    """What evaluate.py measured of a run: episodes, success rates from 0 to 1 and mean return."""
    row = json.loads((run / "evaluation.json").read_text())["results"][0]
    return {name: row[name] for name in ("episodes", "success_once", "success_at_end", "return")}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown line per recipe: means over seeds, with their range."""
    goals = [f"{100 * goal:.0f}" for goal in GOALS]
    head = ["recipe", "seeds", "Stage 1", "Stage 2", "Stage 3", "at end"]
    head += [f"{what} to {goal} %" for goal in goals for what in ("env steps", "minutes")]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in dict.fromkeys(row["recipe"] for row in rows):
        mine = [row for row in rows if row["recipe"] == name]
        stages = ([row[stage] for row in mine if row[stage]] for stage in ("stage1", "stage2", "stage3"))
        cells = [spread([result["success_once"] for result in results]) for results in stages]
        cells.append(spread([row["stage3"]["success_at_end"] for row in mine]))
        for goal in goals:
            reached = [row for row in mine if row[f"steps_to_{goal}"] is not None]
            never = f" ({len(mine) - len(reached)} never)" if len(reached) < len(mine) else ""
            cells.append(", ".join(f"{row[f'steps_to_{goal}'] / 1000:.0f}k" for row in reached) + never)
            cells.append(", ".join(f"{row[f'minutes_to_{goal}']:.1f}" for row in reached))
        lines.append(f"| {name} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(rates: list[float]) -> str:
    """Mean of rates from 0 to 1, in %, with lowest and highest where there are several; empty where there are none."""
    if not rates:
        return ""
    mean = f"{100 * statistics.mean(rates):.1f}"
    return mean if len(rates) == 1 else f"{mean} ({100 * min(rates):.1f}-{100 * max(rates):.1f})"


def named(names: list[str]) -> list[Recipe]:
    """Recipes of suites, by their own names, and from JSON files."""
    found = [r for suite, members in SUITES.items() for r in members if {suite, r.name} & set(names)]
    files = [json.loads(Path(name).read_text()) for name in names if name.endswith(".json")]
    return found + [Recipe.from_dict(data) for file in files for data in file]


def main() -> None:
    """Run all recipes with all seeds, `--jobs` side by side, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=list(SUITES), help="suites, recipes, JSON files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of every recipe each")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--episodes", type=int, default=500, help="episodes of every reported success")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=None, help="write the rows to this JSON file")
    args = parser.parse_args()
    recipes = named(args.recipes)
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
