"""Where the brokers' programs are: installed, or unpacked from packages into a cache.

Nothing is installed: ``apt-get download`` and ``dpkg -x`` need no root, no service starts, and npm runs
no script of a package.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.brokers import newer
from tests.brokers.fetching import NoBroker, Programs, cache_folder, make, make_once, run

__all__ = [
    "NoBroker",
    "Programs",
    "find_axe",
    "find_beanstalkd",
    "find_faketime",
    "find_node",
    "find_pgbouncer",
    "find_postgresql",
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
AXE = "axe-core@4.14.1"
#: Where Debian has the modules of Node, npm among them.
NODE_MODULES = "usr/share/nodejs"


def find_rabbitmq(scratch: Path) -> Programs:
    """Find RabbitMQ, and unpack it if it is not installed.

    Arguments:
        scratch: a folder to unpack into when the user has no cache folder.

    Raises:
        NoBroker: it is neither installed nor to be had.
    """
    if newer.is_wanted():
        return newer.find("rabbitmq-server", scratch)
    if shutil.which("erl"):
        for folder in RABBITMQ_FOLDERS:
            server = Path(folder, "rabbitmq-server")
            if os.access(server, os.X_OK):
                return Programs(server=server)
    root = _unpacked("rabbitmq-server", scratch)
    return Programs(server=root / "usr/lib/rabbitmq/bin/rabbitmq-server", root=root)


def find_redis(scratch: Path, program: str | None = None) -> Programs:
    """Find Redis (or Valkey), and unpack it if it is not installed.

    Arguments:
        program: which of the newer servers, where those are wanted; the environment says it else.

    Raises:
        NoBroker: it is neither installed nor to be had.
    """
    if newer.is_wanted():
        return newer.find(f"{program or newer.redis_server()}-server", scratch)
    return _find(REDIS_PROGRAMS, "redis-server", scratch)


def find_beanstalkd(scratch: Path) -> Programs:
    """Find beanstalkd, and unpack it if it is not installed.

    Raises:
        NoBroker: it is neither installed nor to be had.
    """
    if newer.is_wanted():
        return newer.find("beanstalkd", scratch)
    return _find(("beanstalkd",), "beanstalkd", scratch)


def find_postgresql(scratch: Path) -> Programs:
    """Find PostgreSQL, and unpack it if it is not installed; its other programs are beside the server.

    Raises:
        NoBroker: it is neither installed nor to be had.
    """
    installed = shutil.which("initdb")
    folders = [Path(installed).resolve().parent] if installed else []
    folders += _newest(Path("/"))
    for folder in folders:
        if os.access(folder / "postgres", os.X_OK):
            return Programs(server=folder / "postgres")
    root = _unpacked("postgresql", scratch)
    for folder in _newest(root):
        return Programs(server=folder / "postgres", root=root)
    raise NoBroker("the package postgresql has no server")


def find_pgbouncer(scratch: Path) -> Programs:
    """Find PgBouncer, and unpack it if it is not installed.

    Raises:
        NoBroker: it is neither installed nor to be had.
    """
    return _find(("pgbouncer",), "pgbouncer", scratch, folder="usr/sbin")


def _newest(root: Path) -> list[Path]:
    """Return the folders of PostgreSQL's programs where Debian has them, the newest first."""
    found = root.glob("usr/lib/postgresql/*/bin")
    return sorted(found, key=lambda each: float(each.parent.name), reverse=True)


def _find(names: Sequence[str], package: str, scratch: Path, folder: str = "usr/bin") -> Programs:
    """Find an installed program of *names*, or unpack the *package* whose program has its name."""
    installed = ("/usr/bin", "/usr/local/bin", f"/{folder}")
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *installed))
    for name in names:
        server = shutil.which(name, path=path)
        if server:
            return Programs(server=Path(server))
    root = _unpacked(package, scratch)
    return Programs(server=root / folder / package, root=root)


def find_faketime(scratch: Path) -> Path:
    """Find the library that sets the clock of one process, and unpack it if it is not installed.

    Raises:
        NoBroker: it is neither installed nor to be had.
    """
    if newer.is_wanted():
        raise NoBroker("the newer servers' allocator does not start under libfaketime")
    for root in (Path("/"), _unpacked("libfaketime", scratch)):
        found = sorted(root.glob("usr/lib/*/faketime/libfaketime.so.1"))
        if found:
            return found[0]
    raise NoBroker("libfaketime has no library")


def find_pouchdb(scratch: Path) -> tuple[Programs, Path]:
    """Find pouchdb-server in the cache, or fetch it from npm; takes up to a minute.  May switch.

    Returns:
        Node, and the program that it is to run.

    Raises:
        NoBroker: it is not to be had.
    """
    node, root = _module(POUCHDB, scratch)
    return node, root / "node_modules/pouchdb-server/bin/pouchdb-server"


def find_axe(scratch: Path) -> Path:
    """Find the script of axe-core, which checks a page's accessibility, or fetch it.  May switch.

    Raises:
        NoBroker: it is not to be had.
    """
    return _module(AXE, scratch)[1] / "node_modules/axe-core/axe.min.js"


def find_node(scratch: Path) -> Programs:
    """Find Node, and unpack it if it is not installed.  May switch.

    Raises:
        NoBroker: it is not to be had.
    """
    return _node(scratch)[0]


def _module(package: str, scratch: Path) -> tuple[Programs, Path]:
    """Return Node, and the folder of a module of npm's, from the cache or fetched now.  May switch.

    Two processes that look for it at once fetch it once.
    """
    root = cache_folder(scratch) / package
    node, npm = _node(scratch)

    def install(folder: Path) -> None:
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        command = [*npm, "install", "--prefix", str(folder), *options, package]
        modules = {} if node.root is None else {"NODE_PATH": str(node.root / NODE_MODULES)}
        run(command, cwd=folder, env={**node.libraries(), **modules})

    make_once(root, install)
    return node, root


def _node(scratch: Path) -> tuple[Programs, list[str]]:
    """Node, and the command that is npm: installed, or Debian's."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return Programs(server=Path(node)), [npm]
    root = _unpacked("npm", scratch)
    program = Path(node) if node else root / "usr/bin/node"
    npm = str(root / NODE_MODULES / "npm/bin/npm-cli.js")
    return Programs(server=program, root=root), [str(program), npm]


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
                run(["dpkg", "-x", str(file), str(folder)])

    make(root, unpack)
    return root


def _download(package: str, folder: Path) -> None:
    """Fetch *package* and those of its dependencies that this system lacks."""
    try:
        run(["apt-get", "download", *_missing(package)], cwd=folder)
    except NoBroker as error:
        if os.geteuid() != 0:
            raise
        # A fresh container has no package lists, an old one stale ones.
        try:
            run(["apt-get", "update"])
            run(["apt-get", "download", *_missing(package)], cwd=folder)
        except NoBroker as second:
            raise NoBroker(f"{error}; {second}") from second


def _missing(package: str) -> list[str]:
    """The packages that installing *package* would install: a simulation, which needs no root."""
    plan = run(["apt-get", "install", "--simulate", "--no-install-recommends", package])
    lines = [line.split() for line in plan.splitlines()]
    names = [words[1] for words in lines if words[:1] == ["Inst"]]
    if not names:
        raise NoBroker(f"{package} is installed, but its program is not where it should be")
    return names
