"""Virtual environments with other projects' programs, kept in the tests' cache folder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path

from tests.brokers.fetching import cache_folder

#: Seconds for pip.
TIMEOUT = 600.0


class NotInstalled(Exception):
    """A program cannot be had here; says why."""


def environment(name: str, requirements: Sequence[str], base: str | Path = sys.executable) -> Path:
    """Return the Python of an environment, made the first time.

    Arguments:
        name: of its folder.
        requirements: what pip installs there, beside what greenconn needs.
        base: the Python that it is made with.

    Raises:
        NotInstalled: it cannot be made.
    """
    folder = cache_folder(Path(tempfile.gettempdir())) / f"thirdparty-{name}"
    python, mark = folder / "bin/python", folder / "requirements"
    requirements = [
        *requirements,
        *(each for each in requires("greenconn") or () if ";" not in each),
    ]
    wanted = "\n".join(requirements)
    if not mark.exists() or mark.read_text() != wanted:
        _run([str(base), "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "-q", *requirements])
        mark.write_text(wanted)
    return python


def source(python: Path, requirement: str) -> Path:
    """Return the source archive of a distribution, fetched the first time.

    Arguments:
        python: whose pip fetches it.
        requirement: name and version, as ``celery==5.7.0``.

    Raises:
        NotInstalled: it cannot be had.
    """
    folder = python.parents[1] / "sources"
    name = requirement.replace("==", "-")
    if not list(folder.glob(f"{name}.tar.gz")):
        arguments = ("--no-deps", "--no-binary", ":all:", "--dest", str(folder), requirement)
        _run([str(python), "-m", "pip", "download", "-q", *arguments])
    return folder / f"{name}.tar.gz"


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NotInstalled(str(exc)) from exc
    if done.returncode:
        raise NotInstalled(done.stderr.strip()[-500:] or f"{command[0]}: {done.returncode}")
