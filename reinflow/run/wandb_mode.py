"""Whether wandb can be logged to, found out before a run starts: later nobody answers its questions or waits for it."""

from __future__ import annotations

import os
import threading
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Literal
from urllib.error import HTTPError, URLError

ANSWER_SECONDS = 5.0
"""how long the server may take to answer, and to know who logs"""
UNASKED = ("offline", "dryrun", "disabled")
"""modes in which wandb needs neither a server nor a login"""


def usable_mode(run_dir: Path) -> tuple[Literal["offline"] | None, str | None]:
    """The mode to start wandb in, and a warning; None and None where it is as its own settings say.

    Without a login, or where the server does not answer in `ANSWER_SECONDS`, the run is logged offline.
    """
    import wandb

    settings = wandb.setup().settings
    if settings.mode in UNASKED:
        return None, None
    trouble: list[str] = [f"{settings.base_url} does not answer"]

    def ask() -> None:
        if answers(settings.base_url):
            known = wandb.login(prompt=False, verify=False)
            trouble[:] = [] if known else [f"there is no login for {settings.base_url} (`wandb login` makes one)"]

    thread = threading.Thread(target=ask, name="wandb mode", daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not trouble:
        return None, None
    later = f"`wandb sync {run_dir / 'wandb'}{os.sep}offline-run-*` sends it later"
    return "offline", f"wandb logs offline, since {trouble[0]}; {later}"


def answers(url: str) -> bool:
    """Whether anything at all comes back from there."""
    with suppress(OSError, ValueError):
        try:
            urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
        except (HTTPError, HTTPException):
            return True  # it refuses, but it is there
        except URLError as error:
            return isinstance(error.reason, SSLError)  # wandb brings certificates of its own
        return True
    return False
