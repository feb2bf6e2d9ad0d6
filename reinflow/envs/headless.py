"""State observations without a Vulkan driver: ManiSkill builds materials with the renderer even when nothing is drawn.

`use_stand_ins_without_renderer()` replaces the material and texture classes by empty ones, only in this process and
only where no render device is found. Shapes and sensors stay as they are: ManiSkill doesn't build them with
`render_backend="none"`. Trajectories are bit-identical to those of a machine that renders.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from reinflow.errors import UserError

_DRIVER_VARIABLES = ("VK_ICD_FILENAMES", "VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES")
_PROBE = "import sapien; sapien.render.RenderMaterial()"
_PROBE_SECONDS = 60


@functools.cache
def render_device_available() -> bool:
    """Whether SAPIEN can render here.

    A broken Vulkan driver may crash or hang its process, so a child process tries it, once. Where no driver is
    installed, nothing is tried and the answer takes a millisecond.
    """
    if not _vulkan_driver_installed():
        return False
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=_PROBE_SECONDS, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return False
    return probe.returncode == 0


def _vulkan_driver_installed() -> bool:
    if sys.platform == "darwin" or shutil.which("nvidia-smi") or any(os.environ.get(v) for v in _DRIVER_VARIABLES):
        return True
    data_dirs = os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share").split(":")
    config_dirs = os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
    roots = ["/etc", "/usr/local/etc", "~/.local/share", "~/.config", *config_dirs, *data_dirs]
    return any(any(Path(root).expanduser().glob("vulkan/icd.d/*.json")) for root in roots if root)


def os_release() -> dict[str, str]:
    """/etc/os-release as a dict, empty elsewhere than on Linux."""
    path = Path("/etc/os-release")
    if not path.is_file():
        return {}
    pairs = (line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    return {key: value.strip('"') for key, value in pairs}


def mesa_command(release: dict[str, str]) -> str:
    """The line that installs a software Vulkan driver (Mesa lavapipe, 24.3 or later for descriptor indexing)."""
    packages = "mesa-vulkan-drivers libvulkan1"
    if release.get("ID") == "debian" and release.get("VERSION_ID") == "12":
        return (
            f"sudo apt-get install -y -t bookworm-backports {packages}  (with bookworm-backports among the apt sources)"
        )
    family = f"{release.get('ID', '')} {release.get('ID_LIKE', '')}"
    if "fedora" in family or "rhel" in family:
        return "sudo dnf install -y mesa-vulkan-drivers vulkan-loader"
    if "arch" in family:
        return "sudo pacman -S vulkan-swrast vulkan-icd-loader"
    return f"sudo apt-get update && sudo apt-get install -y {packages}  (Mesa 24.3 or later)"


def refuse_without_renderer(wanted: str) -> None:
    """UserError with the line that installs a driver where `wanted` (a flag and its value) can't be rendered."""
    if not render_device_available():
        raise UserError(
            f"{wanted} needs a Vulkan driver to render with and none was found; install one: "
            f"{mesa_command(os_release())}; or use --obs_mode state without videos"
        )


class StandIn:
    """Takes the place of a render class: accepts every argument, attribute and `set_*` call, and draws nothing."""

    def __init__(self, *args: object, **attributes: object) -> None:
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> object:
        if name.startswith("set_"):
            return lambda *args, **kwargs: None
        raise AttributeError(
            f"{name} needs a render device; install a Vulkan driver or choose a task that doesn't render"
        )


class RenderMaterialStandIn(StandIn):
    """`sapien.render.RenderMaterial`"""


class RenderTextureStandIn(StandIn):
    """`sapien.render.RenderTexture2D`"""


@functools.cache
def use_stand_ins_without_renderer() -> bool:
    """Make `render_backend="none"` work without a Vulkan driver; call before `gym.make`. True when they are in use."""
    if render_device_available():
        return False
    import sapien
    import sapien.wrapper.urdf_loader
    from mani_skill.utils.building import _mjcf_loader

    # the loaders hold their own references: they imported the classes by name
    for module in (sapien.render, sapien.pysapien.render, sapien.wrapper.urdf_loader, _mjcf_loader):
        module.RenderMaterial = RenderMaterialStandIn
        module.RenderTexture2D = RenderTextureStandIn
    return True
