"""The library by which PhysX simulates on a GPU: SAPIEN downloads it when it is first used."""

from __future__ import annotations

import platform
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from zipfile import BadZipFile

from reinflow.errors import UserError

ARCHIVES = {"x86_64": "linux-so.zip", "aarch64": "linux-aarch64-so.zip"}
"""of sapien-sim's physx-precompiled, by machine"""
MEANWHILE = "train with --sim_backend physx_cpu_batched meanwhile"


def library_path() -> Path:
    """Where SAPIEN looks for it."""
    from sapien import physx

    return Path.home() / ".sapien" / "physx" / physx.version() / "libPhysXGpu_64.so"


def by_hand() -> str:
    """How to put the library where SAPIEN looks for it."""
    folder = library_path().parent
    archive = ARCHIVES.get(platform.machine(), "the archive of this machine")
    return f"unzip {archive} of version {folder.name} of sapien-sim's physx-precompiled into {folder}"


def enable() -> None:
    """Load the library, and download it where it is missing. UserError where either fails, with the fix."""
    from sapien import physx

    if not library_path().is_file():
        print(f"SAPIEN downloads its GPU library to {library_path().parent}, once; this may take minutes", flush=True)
    try:
        with redirect_stdout(StringIO()):
            physx.enable_gpu()
    except (OSError, BadZipFile, RuntimeError) as error:  # of requests too, which are OSErrors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        if not library_path().is_file():
            raise UserError(
                f"--sim_backend physx_cuda needs SAPIEN's GPU library, which is missing in {library_path().parent} "
                f"and can't be downloaded ({type(error).__name__}): {by_hand()}, or {MEANWHILE}"
            ) from error
        raise UserError(
            f"--sim_backend physx_cuda can't load SAPIEN's GPU library {library_path()} ({reason}): "
            f"update the NVIDIA driver, or delete the library to have it downloaded anew; {MEANWHILE}"
        ) from error
