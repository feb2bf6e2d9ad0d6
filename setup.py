"""What pyproject.toml can't say: a wheel also holds the scripts of this folder, for the command `reinflow` to run."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SCRIPTS = sorted({path.name for path in Path(__file__).parent.glob("*.py")} - {Path(__file__).name})


class WithScripts(build_py):
    """Copies them to `reinflow/scripts`; an editable install leaves them where they are."""

    def run(self) -> None:
        """As ever, and then the scripts."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "reinflow", "scripts")
            self.mkpath(str(folder))
            for name in SCRIPTS:
                self.copy_file(name, str(folder / name))


setup(cmdclass={"build_py": WithScripts})
