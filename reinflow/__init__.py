"""Online reinforcement-learning fine-tuning of flow-matching robot policies on ManiSkill.

Scripts import everything here and nothing here imports a script; CONTRIBUTING.md says which part may import which.
"""

import os

# torch's threads otherwise spin while they wait, on the cores that the simulator's processes need
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
