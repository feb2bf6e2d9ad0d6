"""What is installed is what is in the repository, and one command runs all of it from anywhere."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import reinflow
from reinflow.__main__ import main, usage
from reinflow.commands import MODULES, SCRIPTS, script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel's content, built from a copy: a build writes beside its sources."""
    copy, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("nets", "reinflow"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))):
        shutil.copy(path, copy)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, check=True)
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(wheels / "site")
    return wheels / "site"


def run(installed: Path, folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "reinflow", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_wheel_holds_every_module_and_every_script(installed):
    modules = {path.relative_to(ROOT) for name in ("nets", "reinflow") for path in (ROOT / name).rglob("*.py")}
    scripts = {Path("reinflow", "scripts", path.name) for path in ROOT.glob("*.py")}
    files = {path.relative_to(installed) for path in installed.rglob("*.py")}
    assert files == modules | scripts
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "reinflow = reinflow.__main__:main" in entry_points.read_text()


def test_an_installed_command_runs_a_script_and_a_module_of_the_wheel_from_another_folder(installed, tmp_path):
    assert run(installed, tmp_path, "--version").strip() == reinflow.__version__
    assert "--demo_path" in run(installed, tmp_path, "clone", "--help").replace("-demo-", "_demo_")
    assert "--json" in run(installed, tmp_path, "doctor", "--help")
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_written_in_one_place(installed):
    (information,) = installed.glob("*.dist-info/METADATA")
    assert f"\nVersion: {reinflow.__version__}\n" in information.read_text()
    sources = [*ROOT.glob("*.py"), *ROOT.glob("reinflow/**/*.py"), ROOT / "pyproject.toml", ROOT / "Dockerfile"]
    holding = [path.name for path in sources if f'"{reinflow.__version__}"' in path.read_text()]
    assert holding == ["__init__.py"]


def test_every_script_has_a_command_and_every_command_a_target():
    assert {script(command.target) for command in SCRIPTS.values()} == set(ROOT.glob("*.py"))
    for command in MODULES.values():
        place = ROOT.joinpath(*command.target.split("."))
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists()
    assert all(f"  {name} " in usage() for name in {**SCRIPTS, **MODULES})


def test_a_command_passes_its_arguments_on(monkeypatch):
    seen = []
    monkeypatch.setattr(runpy, "run_path", lambda path, run_name: seen.append((path, run_name, list(sys.argv))))
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: seen.append((name, list(sys.argv[1:]))))
    for words in (["evaluate", "--checkpoint", "x"], ["report", "runs/sweep"]):
        monkeypatch.setattr(sys, "argv", ["reinflow", *words])
        main()
    path = str(ROOT / "evaluate.py")
    assert seen == [(path, "__main__", [path, "--checkpoint", "x"]), ("reinflow.report", ["runs/sweep"])]


def test_an_unknown_command_is_a_sentence_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reinflow", "evaluete"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: reinflow has no command evaluete: did you mean evaluate?\n"
