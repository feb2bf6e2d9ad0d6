"""Policies that act in one step, as those of FQL and MeanFlow-QL do."""

from __future__ import annotations

from dataclasses import replace

from reinflow.errors import UserError
from reinflow.policies.base import Policy


def act_in_one_step_(policy: Policy) -> None:
    """Let it act in one step from now on. UserError where its family knows nothing of actions after one."""
    if warning := policy.steps_warning(1):
        raise UserError(f"this algorithm trains a policy that acts in one step: {warning}")
    policy.spec = replace(policy.spec, num_inference_steps=1)
