"""Where the brokers' programs are: installed, or unpacked from packages into a cache.

Nothing is installed: ``apt-get download`` and ``dpkg -x`` need no root, no service starts, and npm runs
no script of a package.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gevent import sleep

__all__ = [
    "NoBroker",
    "Programs",
    "find_beanstalkd",
    "find_faketime",
    "find_pouchdb",
    "find_rabbitmq",
    "find_redis",
]

#: Folders of RabbitMQ's own scripts.  Debian's /usr/sbin/rabbitmq-server is a wrapper that changes
#: the user and reads /etc, so PATH is not asked.
RABBITMQ_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
REDIS_PROGRAMS = ("redis-server", "valkey-server")
POUCHDB = "pouchdb-server@4.2.0"
#: Where Debian has the modules of Node, npm among them.
NODE_MODULES = "usr/share/nodejs"
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
    """

    server: Path
    root: Path | None = None

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


def find_rabbitmq(scratch: Path) -> Programs:
    """Find RabbitMQ, and unpack it if it is not installed.

    Arguments:
        scratch: a folder to unpack into when the user has no cache folder.

    Raises:
        NoBroker: it is neither installed nor to be had.
    """
    if shutil.which("erl"):
        for folder in RABBITMQ_FOLDERS:
            server = Path(folder, "rabbitmq-server")
            if os.access(server, os.X_OK):
                return Programs(server=server)
    root = _unpacked("rabbitmq-server", scratch)
    return Programs(server=root / "usr/lib/rabbitmq/bin/rabbitmq-server", root=root)


def find_redis(scratch: Path) -> Programs:
    """Find Redis (or Valkey), and unpack it if it is not installed.

    Raises:
        NoBroker: it is neither installed nor to be had.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/bin", "/usr/local/bin"))
    for name in REDIS_PROGRAMS:
        server = shutil.which(name, path=path)
        if server:
            return Programs(server=Path(server))
    root = _unpacked("redis-server", scratch)
    return Programs(server=root / "usr/bin/redis-server", root=root)


def find_beanstalkd(scratch: Path) -> Programs:
    """Find beanstalkd, and unpack it if it is not installed.

    Raises:
        NoBroker: it is neither installed nor to be had.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/bin", "/usr/local/bin"))
    server = shutil.which("beanstalkd", path=path)
    if server:
        return Programs(server=Path(server))
    root = _unpacked("beanstalkd", scratch)
    return Programs(server=root / "usr/bin/beanstalkd", root=root)


def find_faketime(scratch: Path) -> Path:
    """Find the library that sets the clock of one process, and unpack it if it is not installed.

    Raises:
        NoBroker: it is neither installed nor to be had.
    """
    for root in (Path("/"), _unpacked("libfaketime", scratch)):
        found = sorted(root.glob("usr/lib/*/faketime/libfaketime.so.1"))
        if found:
            return found[0]
    raise NoBroker("libfaketime has no library")


def find_pouchdb(scratch: Path) -> tuple[Programs, Path]:
    """Find pouchdb-server in the cache, or fetch it from npm; takes up to a minute.  May switch.

    Two processes that look for it at once fetch it once.

    Returns:
        Node, and the program that it is to run.

    Raises:
        NoBroker: it is not to be had.
    """
    root = cache_folder(scratch) / POUCHDB
    node, npm = _node(scratch)

    def install(folder: Path) -> None:
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        command = [*npm, "install", "--prefix", str(folder), *options, POUCHDB]
        modules = {} if node.root is None else {"NODE_PATH": str(node.root / NODE_MODULES)}
        _run(command, cwd=folder, env={**node.libraries(), **modules})

    if not root.is_dir():
        with _alone(root):
            if not root.is_dir():
                _make(root, install)
    return node, root / "node_modules/pouchdb-server/bin/pouchdb-server"


def _node(scratch: Path) -> tuple[Programs, list[str]]:
    """Node, and the command that is npm: installed, or Debian's."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return Programs(server=Path(node)), [npm]
    root = _unpacked("npm", scratch)
    program = Path(node) if node else root / "usr/bin/node"
    npm = str(root / NODE_MODULES / "npm/bin/npm-cli.js")
    return Programs(server=program, root=root), [str(program), npm]


@contextmanager
def _alone(root: Path) -> Iterator[None]:
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


def _unpacked(package: str, scratch: Path) -> Path:
    """Return the folder of the unpacked *package*, from the cache or made now."""
    cache = cache_folder(scratch)
    root = cache / package
    if root.is_dir():
        return root
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise NoBroker(f"{package} is not installed, and there is no apt-get to fetch it with")

    def unpack(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=cache) as work:
            os.chmod(work, 0o755)  # apt's own user may look into it
            _download(package, Path(work))
            for file in sorted(Path(work).glob("*.deb")):
                _run(["dpkg", "-x", str(file), str(folder)])

    _make(root, unpack)
    return root


def _make(root: Path, fill: Callable[[Path], None]) -> None:
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


def _download(package: str, folder: Path) -> None:
    """Fetch *package* and those of its dependencies that this system lacks."""
    try:
        _run(["apt-get", "download", *_missing(package)], cwd=folder)
    except NoBroker as error:
        if os.geteuid() != 0:
            raise
        # A fresh container has no package lists, an old one stale ones.
        try:
            _run(["apt-get", "update"])
            _run(["apt-get", "download", *_missing(package)], cwd=folder)
        except NoBroker as second:
            raise NoBroker(f"{error}; {second}") from second


def _missing(package: str) -> list[str]:
    """The packages that installing *package* would install: a simulation, which needs no root."""
    plan = _run(
        ["apt-get", "install", "--simulate", "--no-install-recommends", package],
    )
    lines = [line.split() for line in plan.splitlines()]
    names = [words[1] for words in lines if words[:1] == ["Inst"]]
    if not names:
        raise NoBroker(f"{package} is installed, but its program is not where it should be")
    return names


def _run(
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
