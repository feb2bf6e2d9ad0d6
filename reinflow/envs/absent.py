"""Tasks that people ask for by name and that can't be simulated here: a sentence says where they are to be had."""

from __future__ import annotations

from reinflow.envs.suite import EnvSuite, Task
from reinflow.errors import UserError

PLUG_IN = "docs/environments.md shows how to bring them as a suite of your own, in one file and one line"

ABSENT = {
    "D3IL's tasks are on no package index and want an environment of their own": (
        "avoid_m1", "avoid_m2", "avoid_m3", "avoiding", "aligning", "pushing", "sorting", "stacking",
    ),
    "FurnitureBench's tasks need Isaac Gym, which is on no package index": (
        "one_leg", "one_leg_low", "one_leg_med", "lamp", "lamp_low", "lamp_med",
        "round_table", "round_table_low", "round_table_med",
    ),
}  # fmt: skip
"""names as DPPO, ReinFlow and DMPO have them, in small letters, by the reason why not"""


class AbsentSuite(EnvSuite):
    """All of them, in vain."""

    def owns(self, env_id: str) -> bool:
        """Those names, in whatever letters."""
        return any(env_id.lower() in names for names in ABSENT.values())

    def task(self, env_id: str) -> Task:
        """UserError with the reason, before anything else is looked for."""
        reason = next(reason for reason, names in ABSENT.items() if env_id.lower() in names)
        raise UserError(f"--env_id {env_id}: {reason}; {PLUG_IN}")
