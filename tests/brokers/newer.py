"""Newer servers than this system has: a later Debian's packages, unpacked into a root of their own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.brokers.environment import REDIS_SERVER, servers
from tests.brokers.fetching import Programs, cache_folder, make_once, run
from tests.brokers.roots import BASE, check_tools, furnish, write_program
from tests.brokers.suite import SUITE, unpack

SERVER_PACKAGES = ("rabbitmq-server", "redis-server", "valkey-server", "beanstalkd")
PACKAGES = (*SERVER_PACKAGES, "redis-sentinel", "valkey-sentinel")
VERSIONS = "etc/greenconn-versions"
#: What the tests run, and where it is in the root.
PROGRAMS = {
    **dict.fromkeys(("redis-server", "valkey-server", "beanstalkd", "epmd"), "usr/bin/{}"),
    **dict.fromkeys(
        ("rabbitmq-server", "rabbitmqctl", "rabbitmq-diagnostics"), "usr/lib/rabbitmq/bin/{}"
    ),
    "erl_call": "usr/lib/erlang/lib/erl_interface-*/bin/{}",
}


def is_wanted() -> bool:
    """Return whether the environment asks for newer servers."""
    return servers() == "newer"


def redis_server() -> str:
    """Return which of those that speak Redis' protocol the environment asks for."""
    return os.environ.get(REDIS_SERVER) or "redis"


def find(program: str, scratch: Path) -> Programs:
    """Find a server; the first time that takes a minute.  May switch.

    Arguments:
        scratch: a folder for what starts it.

    Raises:
        NoBroker: it is not to be had here.
    """
    root = _root(scratch)
    folder = scratch / "newer"
    if not folder.is_dir():
        made = Path(tempfile.mkdtemp(dir=scratch))
        for name, path in PROGRAMS.items():
            write_program(made / name, root, path.format(name))
        run([str(made / "redis-server"), "--version"])  # says why it cannot, where it cannot
        made.rename(folder)
    return Programs(server=folder / program, folder=folder)


def versions(scratch: Path) -> dict[str, str]:
    """Return the version of each server's package.  May switch.

    Raises:
        NoBroker: they are not to be had here.
    """
    lines = (_root(scratch) / VERSIONS).read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def _root(scratch: Path) -> Path:
    """Return the folder with what was unpacked, from the cache or made now."""
    root = cache_folder(scratch) / SUITE
    make_once(root, _unpack)
    return root


def _unpack(root: Path) -> None:
    """Fetch the packages and unpack them."""
    check_tools()
    packages = unpack(root, (*BASE, *PACKAGES))
    furnish(root)
    lines = [f"{name} {packages[name]}" for name in SERVER_PACKAGES]
    (root / VERSIONS).write_text("\n".join(lines))
