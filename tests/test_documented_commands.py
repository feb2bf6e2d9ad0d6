"""Every command on every page exists and takes the flags that it has there; tables have the cells of their heads."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reinflow import presets
from reinflow.cli import flat_fields, parse
from reinflow.recipes import flags_of as recipe_flags
from reinflow.registry import choices
from tests.test_guide_commands import script

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PRESETS = {
    "train_shortcut_flow": presets.CLONING_PRESETS,
    "train_aw_shortcut_flow": presets.WEIGHTED_PRESETS,
    "train_online_finetune": presets.ONLINE_PRESETS,
}
STAGES = {"train_shortcut_flow": "pre", "train_online_finetune": "ft", "evaluate": "eval"}
"""whose recipes a script takes"""
MODULES = {"./sweep_reinflow_parallel.sh": "reinflow.sweep.__main__", "./monitor_reinflow.sh": "reinflow.sweep.monitor"}
FOREIGN = ("ray", "apt-get", "sudo", "pip", "git", "docker")
"""commands of others"""
THEIRS = ("main.py", "myreinflow_cli.py", "eval_online.py")
"""scripts of other guides, which pages map to ours"""
PLACEHOLDERS = {"SEED": "0", "S": "0", "N": "1", "X": "PickCube-v1"}
"""words of a page that stand for a number or a task; any other word may be a path"""


def commands(text: str) -> Iterator[str]:
    """Lines of code blocks for a shell, and inline code that starts like a command."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        line = " ".join(code.split())
        if re.match(r"(python|torchrun|make|\./\w+\.sh|\w+\.py) \S", line):
            yield line


ALL = sorted({(page.name, line) for page in PAGES for line in commands(page.read_text())})


def words_of(line: str) -> list[str]:
    """Without comments, the launcher and dots that stand for more."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
    if words[:1] == ["torchrun"]:
        words = words[next(index for index, word in enumerate(words) if word.endswith(".py")) :]
    return words[1:] if words[:1] == ["python"] else words


def configured(words: list[str]) -> tuple[Any, dict[str, Any], list[str]] | None:
    """Config type, presets and arguments of one of our commands; None where it is something else that exists."""
    name, *rest = words
    if name in THEIRS:
        return None
    if name == "bash" or name.startswith("examples/"):
        path = ROOT / (rest[0] if name == "bash" else name)
        assert [word for word in rest if word.startswith("--") and word[2:] not in path.read_text()] == []
        return None
    if name == "make":
        assert f"\n{rest[0]}:" in (ROOT / "Makefile").read_text()
        return None
    if name == "-m":
        name, *rest = rest
        if name == "benchmarks":
            assert not rest or rest[0] == "..." or (ROOT / f"benchmarks/{rest[0]}.py").exists()
            known = "\n".join(path.read_text() for path in ROOT.glob("benchmarks/*.py"))
            assert [word for word in rest if word.startswith("--") and word[2:] not in known] == []
            return None
        if name == "pytest":
            assert all((ROOT / word).exists() for word in rest if not word.startswith("-"))
            return None
        if name.startswith("tests.") or name == "reinflow.doctor":
            assert importlib.util.find_spec(name) is not None
            return None
        name = f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name
        return importlib.import_module(name).Config, {}, rest
    if name in MODULES:
        switches = ["--resume"] if "sweep" in name else []  # which its config has under another name
        return importlib.import_module(MODULES[name]).Config, {}, [word for word in rest if word not in switches]
    stem = Path(name).stem
    return script(stem).Config, PRESETS.get(stem, {}), rest


def flags_of(config_type: Any) -> set[str]:
    """All flags that a command may have, whatever is chosen."""
    try:
        config = config_type()
    except TypeError:  # something of it has to be given
        return {*config_type.__dataclass_fields__, "help"}
    found = {name for name, _ in flat_fields(config)} | {"preset", "help"}
    todo = [config]
    while todo:
        one = todo.pop()
        todo += [value for value in vars(one).values() if hasattr(value, "__dataclass_fields__")]
        for _, registry in choices(one):
            found |= {field for entry in registry.values() for field in entry.config.__dataclass_fields__}
    return found


@pytest.mark.parametrize(("page", "line"), ALL)
def test_a_documented_command_is_one(page, line):
    words = words_of(line)
    if not words or words[0] in FOREIGN:
        return
    ours = configured(words)
    if ours is None:
        return
    config_type, named, rest = ours
    if "..." in rest or not rest or rest[-1].startswith("--"):  # a part of a command
        given = [word[2:].split("=")[0].replace("-", "_").removeprefix("no_") for word in rest if word.startswith("--")]
        assert [flag for flag in given if flag not in flags_of(config_type)] == []
    else:
        recipes = partial(recipe_flags, stage=STAGES[stem]) if (stem := Path(words[0]).stem) in STAGES else None
        parse(config_type, rest, presets=named, recipes=recipes)


def test_the_pages_hold_commands_of_every_script():
    found = " ".join(line for _, line in ALL)
    scripts = {path.name for path in ROOT.glob("*.py")}
    assert [name for name in sorted(scripts | {name[2:] for name in MODULES}) if name not in found] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_row_of_a_table_has_the_cells_of_its_head(page):
    width, wrong = 0, []
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        if cells and width and cells != width:
            wrong.append(f"{page.name}:{number}")
        width = cells
    assert wrong == []
