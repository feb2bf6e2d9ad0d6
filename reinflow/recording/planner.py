"""Demonstrations from ManiSkill's own motion planner, replayed to end-effector control with rewards.

Both tools run as child processes of their own (the planner may crash), through this module's launcher, which lets
them work without a Vulkan driver:

    python -m reinflow.recording.planner mani_skill.trajectory.replay_trajectory --help
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from reinflow.envs.headless import mesa_command, os_release
from reinflow.errors import UserError
from reinflow.recording.writer import TrajectoryWriter, description_path
from reinflow.runtime.files import SOURCES

PLAN = "mani_skill.examples.motionplanning.panda.run"
REPLAY = "mani_skill.trajectory.replay_trajectory"
SPARE = 1.2
"""planned episodes per wanted demonstration: some fail when they are replayed in another control mode"""
MESSAGE_LINES = 3


def refuse_without_planner() -> None:
    """UserError where the planner would crash or is missing."""
    if int(metadata.version("numpy").split(".")[0]) >= 2:
        raise UserError(
            "--source motionplanning crashes under NumPy 2 (mplib needs NumPy 1.26): "
            "pip install 'numpy<2', or use --source scripted"
        )
    try:
        metadata.version("mplib")
    except metadata.PackageNotFoundError:
        raise UserError(
            "--source motionplanning needs mplib: pip install mplib==0.1.1, or use --source scripted"
        ) from None


def plan_demos(env_id: str, num_demos: int, control_mode: str, writer: TrajectoryWriter) -> None:
    """Plan from seed 0 on, replay in `control_mode` with state observations and rewards, write the first ones.

    Raises UserError with the last lines of a tool that fails, or where too few episodes survive the replay.
    """
    with tempfile.TemporaryDirectory(prefix="planner-") as folder:
        count = ["-n", str(int(num_demos * SPARE) + 1), "--only-count-success"]
        launch(PLAN, ["-e", env_id, *count, "--record-dir", folder, "--traj-name", "planned"])
        planned = Path(folder) / env_id / "motionplanning" / "planned.h5"
        rewards = ["--save-traj", "--record-rewards", "--reward-mode", "normalized_dense"]
        launch(REPLAY, ["--traj-path", str(planned), "-o", "state", "-c", control_mode, "-b", "physx_cpu", *rewards])
        replayed = planned.with_name(f"planned.state.{control_mode}.physx_cpu.h5")
        copy_demos(replayed, num_demos, control_mode, writer)


def launch(module: str, arguments: Sequence[str]) -> None:
    """Run a module in a child process; UserError with its last lines and a fix where it fails."""
    command = [sys.executable, "-m", "reinflow.recording.planner", module, *arguments]
    done = subprocess.run(
        command, cwd=SOURCES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        last = " | ".join(done.stdout.strip().splitlines()[-MESSAGE_LINES:])
        fix = (
            mesa_command(os_release())
            if "render device" in last
            else "use --source scripted where the task has an expert"
        )
        raise UserError(f"{module} failed (exit {done.returncode}): {last}; {fix}")


def copy_demos(path: Path, num_demos: int, control_mode: str, writer: TrajectoryWriter) -> None:
    """The first `num_demos` episodes of a ManiSkill recording."""
    import h5py

    episodes = json.loads(description_path(path).read_text())["episodes"]
    if len(episodes) < num_demos:
        raise UserError(f"only {len(episodes)} of the planned episodes survived the replay: lower --num_demos")
    with h5py.File(path, "r") as file:
        for episode in episodes[:num_demos]:
            writer.add(as_arrays(file[f"traj_{episode['episode_id']}"]), episode["episode_seed"], control_mode)


def as_arrays(node: Any) -> Any:
    """An HDF5 group as nested dicts of arrays."""
    return {name: as_arrays(child) for name, child in node.items()} if hasattr(node, "items") else node[()]


def run_without_renderer(module: str) -> None:
    """Run a ManiSkill tool as `python -m` would; where nothing can render, its envs are made without a renderer."""
    import gymnasium

    from reinflow.envs.headless import use_stand_ins_without_renderer

    make = gymnasium.make

    def make_without_renderer(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **{**kwargs, "render_backend": "none", "render_mode": None})

    if use_stand_ins_without_renderer():
        gymnasium.make = make_without_renderer
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    run_without_renderer(sys.argv[0])
