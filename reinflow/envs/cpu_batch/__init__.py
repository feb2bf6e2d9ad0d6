"""Batched ManiSkill on a CPU: N scenes of one process behind ManiSkill's batched (GPU) code path.

    install()
    env = gym.make("PickCube-v1", num_envs=64, sim_backend=backend_name("pin"), render_backend="none", obs_mode="state")

Observations, rewards and partial resets have the form of `physx_cuda`, as CPU tensors; with `pin` the numbers are those
of stock `physx_cpu`. Use one process per core: SAPIEN holds the interpreter lock while it steps. ManiSkill is imported
by `install()`, not before. Only `reinflow.envs` and `benchmarks` import this.

    system.py      the stand-in for PhysxGpuSystem        patches.py     all patches of ManiSkill, its known versions
    layout.py      where a body's numbers lie             kinematics.py  inverse kinematics
    buffers.py     CPU memory as a CudaArray              contacts.py    impulse queries
    render.py      images (needs a Vulkan driver)         forgetting.py  what PhysX keeps over a reset, and its end
"""

from __future__ import annotations

from typing import Literal

Ik = Literal["pin", "geo"]
"""inverse kinematics of the ee control modes: `pin` equals stock physx_cpu, `geo` uses physx_cuda's faster formula"""

BACKEND = "physx_cpu_batched"


def backend_name(ik: Ik = "pin") -> str:
    """The `sim_backend` to hand to `gym.make`; it carries the choice of inverse kinematics."""
    return f"{BACKEND}:{ik}"


def install() -> None:
    """Register the backend with ManiSkill, once per process. Raises UserError for unknown versions of it or SAPIEN."""
    from reinflow.envs.cpu_batch import patches

    patches.install()


def unsupported_reason(env_id: str) -> str | None:
    """Why a task can't run on this backend here, in a sentence, or None. Stock `physx_cpu` workers are the fallback."""
    from reinflow.envs.cpu_batch import patches

    return patches.unsupported_reason(env_id)


def supported(env_id: str) -> bool:
    """Whether the batched simulator runs this task; `unsupported_reason` tells why not."""
    return unsupported_reason(env_id) is None
