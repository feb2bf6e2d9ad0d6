"""Batched ManiSkill on a CPU: `sim_backend="physx_cpu_batched"`, N scenes of one process behind ManiSkill's batched (GPU) code path.

    install()
    env = gym.make("PickCube-v1", num_envs=64, sim_backend=backend_name("pin"), obs_mode="state", render_backend="none")

Observations, rewards and partial resets are those of `physx_cuda`, as CPU tensors; with `pin` the numbers are those of stock
`physx_cpu`. Use one process per core: SAPIEN holds the interpreter lock while it steps. Nothing is imported before `install()`.

    system.py      the stand-in for PhysxGpuSystem        contacts.py    impulse queries
    kinematics.py  inverse kinematics                     install.py     all patches of ManiSkill, and its known versions
    layout.py      where a body's numbers lie             render.py      images (needs a Vulkan driver)
    buffers.py     CPU memory as a CudaArray
"""

from __future__ import annotations

from typing import Literal

Ik = Literal["pin", "geo"]
"""inverse kinematics of the ee control modes: `pin` equals stock physx_cpu, `geo` is faster and equals physx_cuda's formula"""

BACKEND = "physx_cpu_batched"


def backend_name(ik: Ik = "pin") -> str:
    """The `sim_backend` to hand to `gym.make`; it carries the choice of inverse kinematics."""
    return f"{BACKEND}:{ik}"


def install() -> None:
    """Register the backend with ManiSkill, once per process. Raises UserError for a ManiSkill or SAPIEN it doesn't know."""
    from reinflow.envs.cpu_batch import patches

    patches.install()


def unsupported_reason(env_id: str) -> str | None:
    """A sentence that says why a task can't run on this backend here, or None. Stock `physx_cpu` workers are the fallback."""
    from reinflow.envs.cpu_batch import patches

    return patches.unsupported_reason(env_id)


def supported(env_id: str) -> bool:
    return unsupported_reason(env_id) is None
