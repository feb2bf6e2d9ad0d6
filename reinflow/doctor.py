"""Names whatever keeps this machine from training, each with its fix: `python -m reinflow.doctor`, or `make doctor`.

    python -m reinflow.doctor --demo_path trajectory.h5     # instead, what keeps demonstrations from being cloned

Everything that may crash, hang or take long (the Vulkan driver, the simulator) is tried in a child process. Exit code 1
means that at least one blocker was found; a missing Vulkan driver is none, since state observations don't need it.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

PACKAGES = (
    "torch",
    "numpy",
    "gymnasium",
    "mani_skill",
    "sapien",
    "h5py",
    "safetensors",
    "tyro",
    "wandb",
    "tensorboard",
)
MIN_FREE_GB = 2.0
SIMULATOR_SECONDS = 180
SIMULATOR_TEST = """
import sys, torch
from reinflow.envs import EnvConfig, make_env
backend, device = sys.argv[1:]
config = EnvConfig(env_id="PickCube-v1", num_workers=1, sim_backend=backend)
env = make_env(config, num_envs=2, act_horizon=2, obs_horizon=1, gamma=1.0, device=device)
env.reset(seed=0)
for _ in range(3):
    step = env.step_chunk(torch.zeros(2, 2, env.spec.action_dim, device=device))
assert torch.isfinite(step.reward).all()
env.close()
"""


@dataclass(frozen=True)
class Check:
    """One finding: `ok`, worth knowing (`info`), or a `blocker` whose text names the fix."""

    name: str
    state: Literal["ok", "info", "blocker"]
    text: str


def check_python() -> Check:
    """A blocker where Python is older than 3.10 or newer than 3.12."""
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Check("python", "ok", version)
    return Check(
        "python", "blocker", f"Python {version} is not supported: make the venv with PYTHON=python3.11 make install"
    )


def check_packages() -> Check:
    """Versions of the packages that training needs; a blocker where one is not installed."""
    missing, found = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", "blocker", f"{', '.join(missing)} not installed: run make install")
    return Check("packages", "ok", ", ".join(found))


def check_numpy() -> Check:
    """Whether the installed NumPy suits; a blocker where there is none."""
    try:
        version = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return Check("numpy pin", "blocker", "NumPy is not installed: run make install")
    return numpy_verdict(version)


def numpy_verdict(version: str) -> Check:
    """NumPy 1.26 runs everything, 2.0-2.3 all but motion planning, 2.4 breaks ManiSkill's recorder."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) >= (2, 4) or (major, minor) < (1, 26):
        return Check("numpy pin", "blocker", f"NumPy {version} breaks ManiSkill: pip install -c constraints.txt numpy")
    if major == 2:
        text = f"NumPy {version}: all works but collect_demos.py --source motionplanning, which needs numpy==1.26.4"
        return Check("numpy pin", "info", text)
    return Check("numpy pin", "ok", version)


def check_gpu() -> Check:
    """The GPU and its free memory, or why torch sees none; a blocker only where torch can't be imported."""
    try:
        import torch
    except ImportError as error:
        return Check("gpu", "blocker", f"torch can't be imported ({error}): run make clean install")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Check(
            "gpu", "ok", f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, CUDA {torch.version.cuda}"
        )
    from reinflow.runtime.gpu import hidden_gpu

    return Check("gpu", "info", hidden_gpu() or "no GPU: simulation runs batched on the CPU (physx_cpu_batched)")


def check_vulkan() -> Check:
    """Whether SAPIEN can render; without it, the command that installs a software driver."""
    from reinflow.envs.headless import mesa_command, os_release, render_device_available

    if render_device_available():
        return Check("vulkan", "ok", "SAPIEN can render: images and videos work")
    text = (
        f"no usable Vulkan driver: state observations work without; for images and videos: {mesa_command(os_release())}"
    )
    return Check("vulkan", "info", text)


def check_simulator() -> Check:
    """A few steps of PickCube-v1 with state observations, in a child process: a crash there is a sentence here."""
    reason = simulated("physx_cpu_batched", "cpu")
    if reason is None:
        return Check("simulator", "ok", "PickCube-v1 steps with state observations")
    fix = "run make clean install, then make doctor"
    if "libGL" in reason:
        fix = "run pip install --no-deps --force-reinstall opencv-python-headless, which needs no graphics library"
    if "did not step within" in reason:
        fix = "another process may hold the CPU; try again"
    return Check("simulator", "blocker", f"PickCube-v1 does not step ({reason}): {fix}")


def check_gpu_simulator() -> Check:
    """The same on the GPU; no blocker, since the CPU simulates too. Nothing is downloaded."""
    import torch

    from reinflow.envs.gpu_library import by_hand, library_path

    if not torch.cuda.is_available():
        return Check("gpu physics", "info", "not used without a GPU")
    if not library_path().is_file():
        text = f"the first run with physx_cuda downloads SAPIEN's GPU library; without a network, {by_hand()}"
        return Check("gpu physics", "info", text)
    reason = simulated("physx_cuda", "cuda")
    if reason is None:
        return Check("gpu physics", "ok", "PickCube-v1 steps on the GPU")
    return Check("gpu physics", "info", f"{reason}; until then use --sim_backend physx_cpu_batched")


def simulated(backend: str, device: str) -> str | None:
    """Why PickCube-v1 does not step there, or None; what it raised for the user is its own sentence."""
    command = [sys.executable, "-c", SIMULATOR_TEST, backend, device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SIMULATOR_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"it did not step within {SIMULATOR_SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return lines[-1].removeprefix("reinflow.errors.UserError: ") if lines else f"exit {done.returncode}"


def check_disk() -> Check:
    """Free space of the current folder; a blocker below MIN_FREE_GB."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < MIN_FREE_GB:
        return Check(
            "disk", "blocker", f"{free:.1f} GB free in {Path.cwd()}: free {MIN_FREE_GB:.0f} GB or use --runs_dir"
        )
    return Check("disk", "ok", f"{free:.0f} GB free in {Path.cwd()}")


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_packages,
    check_numpy,
    check_gpu,
    check_vulkan,
    check_simulator,
    check_gpu_simulator,
    check_disk,
)


def diagnose(checks: tuple[Callable[[], Check], ...] = CHECKS) -> list[Check]:
    """Run the checks; one that fails itself becomes a blocker instead of a traceback."""
    findings = []
    for check in checks:
        try:
            findings.append(check())
        except Exception as error:  # the doctor exists for machines where anything may be broken
            name = check.__name__.removeprefix("check_")
            text = f"the check itself failed ({type(error).__name__}: {error}): run make clean install"
            findings.append(Check(name, "blocker", text))
    return findings


def examine(demo_path: list[str], as_json: bool) -> int:
    """Print what demonstrations are like and what to try; 2 where they can't be read."""
    from reinflow.data.demos import load_demos
    from reinflow.data.examination import advice, examined, lines
    from reinflow.errors import UserError

    try:
        with redirect_stdout(sys.stderr if as_json else sys.stdout):
            demos = load_demos(demo_path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = examined(demos)
    if as_json:
        print(json.dumps({**asdict(found), "advice": list(advice(found, demos.max_episode_steps))}, indent=2))
    else:
        print("\n".join(lines(found, demos)))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Print the findings; 1 if one of them is a blocker."""
    parser = argparse.ArgumentParser(
        prog="python -m reinflow.doctor", description="Name whatever keeps training from working."
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--demo_path", nargs="+", help="look at demonstrations instead of the machine")
    arguments = parser.parse_args(argv)
    if arguments.demo_path:
        return examine(arguments.demo_path, arguments.json)
    findings = diagnose()
    blockers = [finding for finding in findings if finding.state == "blocker"]
    if arguments.json:
        print(json.dumps({"ok": not blockers, "checks": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(f"{finding.state.upper():8} {finding.name:10} {finding.text}")
        print(f"{len(blockers)} blocker(s)" if blockers else "ready to train")
    return 1 if blockers else 0


if __name__ == "__main__":
    sys.exit(main())
