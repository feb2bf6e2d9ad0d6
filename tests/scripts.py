"""Scripts as a user runs them, in new processes that begin with everything imported, which is most of a short run."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(["tests.warm"])
ALONE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
"""environment of every script: one thread each, and workers that find the sources"""


def run_script(folder: Path, words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """What `python WORDS` does in `folder`, where the first word is a script's path or `-m`; its output is caught."""
    os.environ.update(ALONE)  # the server of the first call keeps the environment that it finds
    with TemporaryDirectory() as caught:
        outputs = [os.path.join(caught, name) for name in ("stdout", "stderr")]
        process = FORKED.Process(target=_main, args=(str(folder), words, environment, outputs))
        process.start()
        process.join()
        texts = [Path(path).read_text() for path in outputs]
    return subprocess.CompletedProcess(words, process.exitcode, *texts)


def _main(folder: str, words: list[str], environment: Mapping[str, str], outputs: list[str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.path.insert(0, str(ROOT))
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
