"""Virtual environments with other projects' programs, kept in the tests' cache folder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.brokers.fetching import cache_folder

__all__ = ["NotInstalled", "environment"]

#: Seconds for pip.
TIMEOUT = 600.0


class NotInstalled(Exception):
    """A program cannot be had here; says why."""


def environment(name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of an environment, made the first time.

    Arguments:
        name: of its folder.
        requirements: what pip installs there.

    Raises:
        NotInstalled: it cannot be made.
    """
    folder = cache_folder(Path(tempfile.gettempdir())) / f"thirdparty-{name}"
    python, mark = folder / "bin/python", folder / "requirements"
    wanted = "\n".join(requirements)
    if not mark.exists() or mark.read_text() != wanted:
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "-q", *requirements])
        mark.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NotInstalled(str(exc)) from exc
    if done.returncode:
        raise NotInstalled(done.stderr.strip()[-500:] or f"{command[0]}: {done.returncode}")
