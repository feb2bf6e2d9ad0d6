"""The type checker of `make test`: shapes and types of annotations are checked at every call while tests run."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""an int is a float, as for mypy"""
