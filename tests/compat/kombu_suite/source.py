"""Where kombu's tests come from: its source distribution, which is fetched and never kept here."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

VERSION: Final = "5.7.0"
#: The archive, where it is at hand; else it is fetched by pip into the cache.
SDIST: Final = "GREENCONN_TEST_KOMBU_SDIST"
FETCH_TIMEOUT: Final = 120.0

#: The tests of what greenconn has, too: not those of kombu's event loop, nor of single transports.
CHOSEN: Final = (
    "test_*.py",
    "utils/test_*.py",
    "transport/test_base.py",
    "transport/test_memory.py",
    "transport/test_transport.py",
    "transport/virtual/test_*.py",
)

#: Those with a RabbitMQ and a Redis.
INTEGRATION: Final = ("test_py_amqp.py", "test_redis.py")

#: Beside theirs: kombu's memory transport keeps nothing exclusive, so their tests share queues.
#: Those of a mailbox send commands to a node whose queue an earlier test has left there.
#: Of the tests with brokers, those are left out that are about kombu's event loop, or about what its
#: transport for Redis consists of, some of whose classes the others import.
CONFTEST: Final = """
import re

import pytest

from greenconn.transport import redis

for name in ("Channel", "SentinelChannel"):
    if not hasattr(redis, name):
        setattr(redis, name, object)
redis.SUBCLIENT_MAX_MISSED_HEALTH_CHECKS = None

KOMBUS_OWN = re.compile(
    "integration.*(event_?loop|health_?check|sentinel|binding|restorevisible)", re.IGNORECASE
)


def pytest_collection_modifyitems(items):
    items[:] = [each for each in items if not KOMBUS_OWN.search(each.nodeid)]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if pyfuncitem.originalname in ("test_abcast", "test_call", "test_cast", "test_multi_call"):
        pyfuncitem.instance.node.Consumer()


@pytest.fixture(autouse=True)
def _empty_broker():
    yield
    from greenconn.transport import memory

    memory.reset()
"""


class NoSource(Exception):
    """The source distribution cannot be had here; the text says why."""


def adapted(folder: Path, *, with_brokers: bool) -> list[Path]:
    """Unpack kombu's tests into *folder*, their imports renamed, and return those to run.

    Arguments:
        with_brokers: run those that need brokers, too.

    Raises:
        NoSource: there is no source distribution.
    """
    with tarfile.open(_archive()) as archive:
        members = [each for each in archive.getmembers() if f"kombu-{VERSION}/t/" in each.name]
        archive.extractall(folder, members, filter="data")
    root = folder / f"kombu-{VERSION}"
    for path in root.rglob("*.py"):
        text = path.read_text("utf-8")
        # Its event loop is kombu's.
        path.write_text(re.sub(r"\bkombu\b(?!\.asynchronous)", "greenconn", text), "utf-8")
    (root / "conftest.py").write_text(CONFTEST, "utf-8")
    (root / "setup.cfg").write_text("[tool:pytest]\npython_classes = test_*\n", "utf-8")
    unit, integration = root / "t" / "unit", root / "t" / "integration"
    chosen = {path for pattern in CHOSEN for path in unit.glob(pattern)}
    if with_brokers:
        chosen.update(integration / name for name in INTEGRATION)
    return sorted(chosen)


def _archive() -> Path:
    given = os.environ.get(SDIST)
    if given:
        return Path(given)
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "greenconn" / "kombu"
    )
    path = cache / f"kombu-{VERSION}.tar.gz"
    with _only_one(cache):
        if not path.exists():
            _fetch(path)
    return path


def _fetch(path: Path) -> None:
    folder = path.parent / "fetched"
    shutil.rmtree(folder, ignore_errors=True)
    arguments = ("download", "--quiet", "--no-deps", "--no-binary", ":all:", f"kombu=={VERSION}")
    command = [sys.executable, "-m", "pip", *arguments, "--dest", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT)
    except subprocess.CalledProcessError as exc:
        lines = exc.stderr.strip().splitlines() or ["pip said nothing"]
        raise NoSource(f"pip cannot fetch kombu {VERSION}: {lines[-1]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise NoSource(f"pip cannot fetch kombu {VERSION} within {FETCH_TIMEOUT:g} s") from exc
    (folder / path.name).rename(path)
    shutil.rmtree(folder)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
