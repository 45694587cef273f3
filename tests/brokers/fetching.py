"""Fetching programs into a cache of the user's, with the system's own tools."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gevent import sleep

#: Seconds for one command, and for somebody else who fetches the same.
FETCH_TIMEOUT = 300.0
STEP = 0.1


class NoBroker(Exception):
    """A broker cannot be had here; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The programs of one broker.

    Arguments:
        server: the program that serves.
        root: the folder that stands for ``/``, when they were unpacked and not installed.
        folder: the folder with the programs that belong to it, when they are not on the PATH.
    """

    server: Path
    root: Path | None = None
    folder: Path | None = None

    def libraries(self) -> dict[str, str]:
        """The environment that makes unpacked programs find their libraries."""
        if self.root is None:
            return {}
        folders = [
            folder
            for part in ("lib", "usr/lib")
            for folder in (self.root / part, *sorted((self.root / part).glob("*-linux-*")))
            if folder.is_dir()
        ]
        return {"LD_LIBRARY_PATH": os.pathsep.join(map(str, folders))}


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One process at a time makes *root*; the lock goes with the process.  May switch."""
    end = time.monotonic() + FETCH_TIMEOUT
    with open(root.with_name(f".{root.name}.lock"), "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= end:
                    raise NoBroker(f"another process does not come to an end with {root}") from None
                sleep(STEP)
            else:
                yield
                return


def cache_folder(scratch: Path) -> Path:
    """The user's folder for unpacked packages, or one in *scratch* if there can be none."""
    release = platform.freedesktop_os_release() if os.path.exists("/etc/os-release") else {}
    system = "-".join(
        (release.get("ID", "unknown"), release.get("VERSION_ID", "0"), platform.machine())
    )
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base, "greenconn", "brokers", system)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = scratch / "cache"
        folder.mkdir(exist_ok=True)
    return folder


def make(root: Path, fill: Callable[[Path], object]) -> None:
    """Make a folder of the cache at once: another run finds all of it or nothing."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=root.parent) as work:
        made = Path(work, "root")
        made.mkdir()
        fill(made)
        try:
            os.rename(made, root)
        except OSError:
            if not root.is_dir():  # else another run was quicker
                raise


def make_once(root: Path, fill: Callable[[Path], object]) -> None:
    """Make a folder of the cache unless it is there; who comes meanwhile waits for it.  May switch."""
    if not root.is_dir():
        with locked(root):
            if not root.is_dir():
                make(root, fill)


def run(
    command: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a program of a package system and return its output.

    Raises:
        NoBroker: it failed; the text has its last lines.
    """
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **(env or {})}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoBroker(f"{' '.join(command[:2])} failed: {error}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split("\n")[-4:]).strip()
        raise NoBroker(f"{' '.join(command[:3])} failed with code {done.returncode}: {said}")
    return done.stdout
