"""Data formats by name: `format_of` finds that of a recording, one small module each reads it.

demos.py asks for a format and never for a particular one; only what writes recordings names some.
"""

from __future__ import annotations

from reinflow.data.formats.base import FORMATS, DataFormat, Recording, format_of
from reinflow.data.formats.d4rl import D4RLFormat
from reinflow.data.formats.lerobot import LeRobotFormat
from reinflow.data.formats.maniskill import ManiSkillFormat
from reinflow.data.formats.minari import MinariFormat
from reinflow.data.formats.npz import NpzFormat
from reinflow.data.formats.robomimic import RobomimicFormat
from reinflow.registry import Entry

FORMATS.add("maniskill", Entry(ManiSkillFormat))
FORMATS.add("npz", Entry(NpzFormat))
FORMATS.add("d4rl", Entry(D4RLFormat))
FORMATS.add("robomimic", Entry(RobomimicFormat))
FORMATS.add("minari", Entry(MinariFormat))
FORMATS.add("lerobot", Entry(LeRobotFormat))

__all__ = ["FORMATS", "DataFormat", "Recording", "format_of"]
