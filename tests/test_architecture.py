"""Holds the table of who may import whom (CONTRIBUTING.md), by reading the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = {"reinflow.runtime"} | {f"reinflow.{name}" for name in ("types", "specs", "errors", "registry")}
TENSORS = {"torch", "numpy", "jaxtyping", "einops"}
SIMULATOR = {"mani_skill", "sapien", "gymnasium", "mujoco", "gymnasium_robotics", "robosuite"}

MAY_IMPORT = {
    "nets": {"nets", "torch", "einops", "jaxtyping"},
    "reinflow/types.py": {"torch", "jaxtyping", "reinflow.specs"},
    "reinflow/specs.py": set(),
    "reinflow/errors.py": set(),
    "reinflow/registry.py": {"reinflow.errors"},
    "reinflow/flags.py": {"tyro", "reinflow.errors", "reinflow.registry"},
    "reinflow/cli.py": {"tyro", "reinflow.run.compatibility", "reinflow.errors", "reinflow.flags"},
    "reinflow/runtime": {"torch", "numpy", "jaxtyping", "reinflow.errors", "reinflow.runtime"},
    "reinflow/envs": CORE
    | TENSORS
    | SIMULATOR
    | {"reinflow.envs", "reinflow.flags", "transforms3d", "pytorch_kinematics"},
    "reinflow/data": CORE | TENSORS | {"h5py", "pyarrow", "huggingface_hub", "reinflow.data"},
    "reinflow/policies": CORE | TENSORS | {"nets", "reinflow.policies", "reinflow.flags"},
    "reinflow/algos": CORE
    | TENSORS
    | {"nets", "reinflow.algos", "reinflow.flags"}
    | {f"reinflow.policies.{name}" for name in ("base", "chain", "ema", "transition")},
    "reinflow/run": CORE
    | {"torch", "tqdm", "wandb", "tensorboard", "reinflow.cli", "reinflow.flags", "reinflow.run", "reinflow.storage"},
    "reinflow/storage": CORE | TENSORS | {"safetensors", "nets.config", "reinflow.policies", "reinflow.storage"},
    "reinflow/recording": CORE
    | TENSORS
    | SIMULATOR
    | {"h5py", "transforms3d", "mplib", "reinflow.recording", "reinflow.envs", "reinflow.data"},
    "reinflow/agent.py": TENSORS
    | {"nets", "reinflow.algos", "reinflow.storage", "reinflow.errors", "reinflow.policies", "reinflow.types"},
    "reinflow/inference.py": CORE
    | TENSORS
    | {f"reinflow.{name}" for name in ("envs", "policies", "run.run", "storage", "training.evaluation")},
    "reinflow/training/learner.py": {"torch", "reinflow.policies.base", "reinflow.types"},
    "reinflow/training/health.py": {"reinflow.algos.guard"},
    "reinflow/training/ranking.py": {"reinflow.training.evaluation", "reinflow.types"},
    "reinflow/training/rollouts.py": CORE | TENSORS | {"reinflow.training.learner"},
    "reinflow/training/loops.py": CORE
    | TENSORS
    | {"reinflow.data.replay"}
    | {f"reinflow.training.{name}" for name in ("config", "health", "learner", "rollouts")},
    "reinflow/training/trainer.py": CORE | {"reinflow.storage", "reinflow.training"},
}
"""top-level packages, and modules of ours by prefix; the standard library is free"""

LAZY = {
    *("torch", "mani_skill", "sapien", "gymnasium", "mujoco", "robosuite"),
    *("h5py", "pyarrow", "huggingface_hub", "wandb", "matplotlib", "mplib"),
}
"""imported only when something is learned, simulated, read or tracked: --help waits for none of them"""
HELP = """
import contextlib, os, runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    run = runpy.run_path if name.endswith(".py") else runpy.run_module
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(open(os.devnull, "w")):
        run(name, run_name="__main__", **({} if name.endswith(".py") else {"alter_sys": True}))
    print(name, *sorted(LAZY & set(sys.modules)))
"""


def sources(place: str) -> list[Path]:
    path = ROOT / place
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def absolute(path: Path, node: ast.ImportFrom) -> Iterator[str]:
    """The modules of `from x import y`, relative ones spelt out; y is one itself where x is a folder that has it."""
    parent = ".".join(path.relative_to(ROOT).with_suffix("").parts[: -node.level]) if node.level else ""
    module = ".".join(part for part in (parent, node.module) if part)
    folder = ROOT / module.replace(".", "/")
    inside = {alias.name for alias in node.names if (folder / f"{alias.name}.py").exists()}
    yield from (f"{module}.{name}" for name in inside)
    if len(inside) < len(node.names):
        yield module


def imports(path: Path, for_types: bool = False) -> Iterator[str]:
    """Every imported module; those under `if TYPE_CHECKING` only `for_types`."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if not for_types and isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from absolute(path, child)
            else:
                yield from visit(child)

    return visit(ast.parse(path.read_text()))


def allowed(module: str, permitted: set[str]) -> bool:
    if module.split(".")[0] in sys.stdlib_module_names:
        return True
    return any(module == name or module.startswith(f"{name}.") for name in permitted)


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_imports_stay_inside_the_table(place):
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources(place)
        for module in imports(path)
        if not allowed(module, MAY_IMPORT[place])
    ]
    assert wrong == []


def test_help_imports_neither_torch_nor_simulator_nor_trackers():
    scripts = sorted(path.name for path in ROOT.glob("*.py"))
    modules = ["reinflow.doctor", "reinflow.foreign", "reinflow.report", "reinflow.sweep", "reinflow.sweep.monitor"]
    code = f"LAZY = {LAZY}{HELP}"
    command = [sys.executable, "-c", code, *scripts, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*scripts, *modules]


def test_nobody_imports_a_script():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for place in ("nets", "reinflow")
        for path in sources(place)
        for module in imports(path)
        if module.split(".")[0] in scripts
    ]
    assert wrong == []


def circles(for_types: bool) -> set[frozenset[str]]:
    """Groups of modules that import each other, directly or through others; imports inside functions count."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources("reinflow")}
    graph = {name: {one for one in imports(path, for_types) if one in modules} for name, path in modules.items()}
    beyond = {name: reached(graph, name) for name in graph}
    groups = {name: frozenset(one for one in found if name in beyond[one]) for name, found in beyond.items()}
    return set(filter(None, groups.values()))


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """All that imports lead to from there."""
    found: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += graph[name]
    return found


KNOW_EACH_OTHERS_TYPES = {
    frozenset({"reinflow.envs.config", "reinflow.envs.suite"}),
    frozenset({"reinflow.policies.parts", "reinflow.policies.spec"}),
}
"""a reader has to follow imports for type checkers, too, so there are few; none leads from algorithms to the agent"""


def test_no_modules_import_each_other_in_a_circle():
    assert circles(for_types=False) == set()
    assert circles(for_types=True) == KNOW_EACH_OTHERS_TYPES


def test_the_loops_name_no_algorithm():
    words = ("PPO", "ReinFlowAgent", "BehaviorCloning", "AdvantageWeighted")
    for path in sources("reinflow/training"):
        assert [word for word in words if word in path.read_text()] == [], path


def test_the_table_notices_a_wrong_import():
    assert allowed("reinflow.policies.chain", MAY_IMPORT["reinflow/algos"])
    assert not allowed("reinflow.policies.shortcut", MAY_IMPORT["reinflow/algos"])  # an algorithm names no family
    assert not allowed("reinflow.envs.maniskill", MAY_IMPORT["reinflow/policies"])
