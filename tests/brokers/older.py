"""MongoDB and CouchDB, which Debian does not have: packages of older releases of Ubuntu.

MongoDB is of version 3.6, CouchDB of 1.6.  Each release has a root of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import pymongo

from tests.brokers.environment import servers
from tests.brokers.fetching import NoBroker, cache_folder, make_once, run
from tests.brokers.roots import BASE, check_tools, furnish, write_program
from tests.brokers.suite import Source, unpack

MIRROR: Final = "http://archive.ubuntu.com/ubuntu"
#: Debian has the keys that sign Ubuntu's packages.
KEYRING: Final = "ubuntu-keyring"


class Program(NamedTuple):
    """A server's program: where it is in the root of a release, and the package that contains it."""

    release: str
    package: str
    path: str


MONGODB: Final = Program("focal", "mongodb-server-core", "usr/bin/mongod")
COUCHDB: Final = Program("xenial", "couchdb-bin", "usr/bin/erl")


def is_wanted() -> bool:
    """Return whether the environment asks for these databases."""
    return servers() == "older"


def check(scratch: Path) -> None:
    """See that both can be had, and that they can be used.  The first time that takes two minutes.

    Raises:
        NoBroker: they cannot.
    """
    if pymongo.version_tuple[:2] >= (4, 11):
        raise NoBroker(f"MongoDB 3.6 needs pymongo 4.10 or older, got {pymongo.version}")
    run([str(find(MONGODB, scratch)), "--version"])
    run([str(find(COUCHDB, scratch)), "-noshell", "-s", "init", "stop"])


def find(program: Program, scratch: Path) -> Path:
    """Find a server's program; the first time that takes a minute.  May switch.

    Arguments:
        scratch: a folder for what starts it.

    Raises:
        NoBroker: it is not to be had here.
    """
    root = _root(program, scratch)
    starter = scratch / program.package
    if not starter.is_file():
        with tempfile.TemporaryDirectory(dir=scratch) as made:
            write_program(Path(made, "starter"), root, program.path)
            Path(made, "starter").rename(starter)
    return starter


def _root(program: Program, scratch: Path) -> Path:
    """Return the folder with what was unpacked, from the cache or made now."""
    root = cache_folder(scratch) / program.release
    make_once(root, lambda made: _unpack(program, made))
    return root


def _unpack(program: Program, root: Path) -> None:
    """Fetch the package of a program and unpack it."""
    check_tools()
    with tempfile.TemporaryDirectory(prefix="greenconn-keys-") as keys:
        unpack(Path(keys), (KEYRING,))
        keyring = Path(keys, "usr/share/keyrings/ubuntu-archive-keyring.gpg")
        source = Source(MIRROR, program.release, "main universe", keyring)
        unpack(root, (*BASE, program.package), source)
    furnish(root)
