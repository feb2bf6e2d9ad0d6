"""Data formats by name: `format_of` finds that of a file, one small module each reads it.

demos.py asks for a format and never for a particular one; only what writes recordings names ManiSkill's.
"""

from __future__ import annotations

from reinflow.data.formats.base import FORMATS, DataFormat, Recording, format_of
from reinflow.data.formats.maniskill import ManiSkillFormat
from reinflow.registry import Entry

FORMATS.add("maniskill", Entry(ManiSkillFormat))

__all__ = ["FORMATS", "DataFormat", "Recording", "format_of"]
