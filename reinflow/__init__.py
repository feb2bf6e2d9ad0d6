"""Online reinforcement-learning fine-tuning of flow-matching robot policies on ManiSkill.

Scripts import everything here and nothing here imports a script; CONTRIBUTING.md says which part may import which.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reinflow.inference import load

# torch's threads otherwise spin while they wait, on the cores that the simulator's processes need
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`reinflow.load`, imported when somebody asks for it: scripts and workers start without."""
    if name == "load":
        from reinflow.inference import load

        return load
    raise AttributeError(f"module 'reinflow' has no attribute {name!r}")
