"""The commands of `reinflow`, and where the scripts behind them lie."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from reinflow.runtime.files import SOURCES


class Command(NamedTuple):
    """A word of the command line."""

    target: str
    """stem of a script, or name of a module"""
    does: str


SCRIPTS = {
    "quickstart": Command("quickstart", "demonstrations, all stages and their evaluations on one task"),
    "collect": Command("collect_demos", "Stage 0: demonstrations"),
    "clone": Command("train_shortcut_flow", "Stage 1: behaviour cloning"),
    "weight": Command("train_aw_shortcut_flow", "Stage 2: offline improvement by advantage weighting"),
    "finetune": Command("train_online_finetune", "Stage 3: online fine-tuning"),
    "offline": Command("train_offline", "offline training by any algorithm"),
    "online": Command("train_online", "online training by any algorithm"),
    "evaluate": Command("evaluate", "success, return and speed of checkpoints"),
    "profile": Command("test_reinflow_memory_real", "memory and speed of Stage 3 over numbers of envs"),
}
MODULES = {
    "export": Command("reinflow.export", "a policy as ONNX, torch.export or TorchScript"),
    "sweep": Command("reinflow.sweep", "the ablation of Stage 3"),
    "monitor": Command("reinflow.sweep.monitor", "a live table of a sweep"),
    "report": Command("reinflow.report", "a page of what was trained"),
    "foreign": Command("reinflow.foreign", "converts .pt files of others"),
    "doctor": Command("reinflow.doctor", "names what is missing on this machine"),
}


def script(stem: str) -> Path:
    """A script of the project: beside the package in a checkout, inside it where a wheel was installed."""
    installed = SOURCES / "reinflow" / "scripts" / f"{stem}.py"
    return installed if installed.exists() else SOURCES / f"{stem}.py"
