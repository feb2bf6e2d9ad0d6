"""`nets` knows tensors only: no RL, no simulator, no file formats."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import nets

ALLOWED = {"torch", "einops", "jaxtyping", "nets"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted(Path(nets.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_nets_import_only_torch(path):
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= ALLOWED
