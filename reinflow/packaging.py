"""What pyproject.toml can't say: a wheel also holds the scripts, as `reinflow/scripts`, for the command `reinflow`."""

from __future__ import annotations

from pathlib import Path

from setuptools.command.build_py import build_py


class WithScripts(build_py):
    """Copies them there; an editable install leaves them where they are."""

    def run(self) -> None:
        """As ever, and then the scripts of the folder that is built."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "reinflow", "scripts")
            self.mkpath(str(folder))
            for script in sorted(Path().glob("*.py")):
                self.copy_file(str(script), str(folder / script.name))
