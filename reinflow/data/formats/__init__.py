"""Data formats by name: `format_of` finds that of a file, one small module each reads it."""

from __future__ import annotations

from reinflow.data.formats.base import FORMATS, DataFormat, Recording, format_of
from reinflow.data.formats.maniskill import ManiSkillFormat
from reinflow.registry import Entry

FORMATS.add("maniskill", Entry(ManiSkillFormat))

__all__ = ["FORMATS", "DataFormat", "Recording", "format_of"]
