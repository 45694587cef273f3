"""Instructions of hot paths, which do not depend on the load of the machine.

``python -m benchmarks.instructions``

All paths run in one process under valgrind's callgrind, which writes a file of counts at each mark.  A
path is measured six times, and the least is taken.  The counts in ``instructions.json`` are the limits
for the versions that they were counted with: ``--check`` fails for a path that takes more than its
tolerance above them, and ``--save`` writes what was counted.  With other versions there is nothing to
compare with, which is said.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.stage import BODY

#: What a path may cost more without being refused, and those whose counts differ more between runs: how
#: many messages a claim finds depends on the server.
TOLERANCE: Final = 0.02
TOLERANCES: Final = {"redis: deliver, handle, ack": 0.08}
#: Messages of a measurement, and measurements of a path.
COUNT, TURNS = 400, 6
CALLERS: Final = 40
SECONDS: Final = 120.0
#: The function of the C library at which callgrind writes its counts; greenconn does not call it.
MARK: Final = "getpgid"
LIMITS: Final = Path(__file__).with_name("instructions.json")
PACKAGES: Final = ("gevent", "greenlet", "msgspec", "amqp", "redis", "hiredis")

#: The addresses of the brokers by their names.
Urls = dict[str, str]
#: Is called with the number of messages.
Work = Callable[[int], None]
#: Returns what is done before each measurement, and what is measured.
Prepare = Callable[[Urls], tuple[Work, Work]]


def _nothing(count: int) -> None:
    """Make nothing ready."""


def _publish(name: str) -> Prepare:
    def prepare(urls: Urls) -> tuple[Work, Work]:
        import greenconn

        connection = greenconn.Connection(urls[name])
        queue = greenconn.Queue("instructions-publish", durable=False)

        def run(count: int) -> None:
            for _ in range(count):
                greenconn.publish(queue, BODY, connection=connection)

        return _nothing, run

    return prepare


def _publish_shared(name: str) -> Prepare:
    def prepare(urls: Urls) -> tuple[Work, Work]:
        import gevent

        import greenconn

        connection = greenconn.Connection(urls[name])
        queue = greenconn.Queue("instructions-shared", durable=False)

        def publish(count: int) -> None:
            for _ in range(count):
                greenconn.publish(queue, BODY, connection=connection)

        def run(count: int) -> None:
            callers = [gevent.spawn(publish, count // CALLERS) for _ in range(CALLERS)]
            gevent.joinall(callers, raise_error=True)

        return _nothing, run

    return prepare


def _consume(name: str) -> Prepare:
    def prepare(urls: Urls) -> tuple[Work, Work]:
        from gevent.event import Event

        import greenconn

        connection = greenconn.Connection(urls[name])
        queue = greenconn.Queue("instructions-consume", durable=False)
        done, left = Event(), 0

        def fill(count: int) -> None:
            for _ in range(count):
                greenconn.publish(queue, BODY, connection=connection)

        def handler(body: Any, message: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        def run(count: int) -> None:
            nonlocal left
            left = count
            done.clear()
            consumer = greenconn.spawn_consumer(queue, handler, connection=connection)
            if not done.wait(SECONDS):
                raise TimeoutError(f"{left} of {count} messages did not come")
            consumer.stop(SECONDS)

        return fill, run

    return prepare


def _acquire(urls: Urls) -> tuple[Work, Work]:
    import greenconn
    from greenconn.pools import connections

    pool = connections[greenconn.Connection(urls["amqp"])]
    with pool.acquire(block=True) as connection:
        connection.connect()

    def run(count: int) -> None:
        for _ in range(count):
            with pool.acquire(block=True):
                pass

    return _nothing, run


PATHS: Final[dict[str, Prepare]] = {
    "memory: publish": _publish("memory"),
    "memory: deliver, handle, ack": _consume("memory"),
    "amqp: publish and confirm": _publish("amqp"),
    "amqp: publish and confirm, 40 greenlets": _publish_shared("amqp"),
    "amqp: deliver, handle, ack": _consume("amqp"),
    "amqp: acquire and release": _acquire,
    "redis: publish": _publish("redis"),
    "redis: publish, 40 greenlets": _publish_shared("redis"),
    "redis: deliver, handle, ack": _consume("redis"),
    "sqlite: publish, 40 greenlets": _publish_shared("sqlite"),
}


def run_paths(urls: Urls) -> None:
    """Run each path, with marks around each measurement."""
    for path in PATHS.values():
        before, run = path(urls)
        before(COUNT)
        run(COUNT)  # caches are filled
        for _ in range(TURNS):
            before(COUNT)
            gc.collect()
            gc.disable()
            os.getpgid(0)
            run(COUNT)
            os.getpgid(0)
            gc.enable()


def measure() -> dict[str, int]:
    """Return the instructions for each message on each path."""
    from tests.brokers.keeper import Keeper
    from tests.brokers.rabbitmq import RabbitMQ
    from tests.brokers.redis_server import RedisServer

    with Keeper() as keeper, TemporaryDirectory(prefix="greenconn-instructions-") as folder:
        amqp, redis = RabbitMQ(keeper), RedisServer(keeper)
        amqp.start()
        redis.start()
        urls = {
            "memory": "memory://",
            "amqp": amqp.url,
            "redis": redis.url,
            "sqlite": f"sqlite:///{folder}/instructions.db",
        }
        out = Path(folder, "counts")
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        program = [sys.executable, "-m", "benchmarks.instructions", "--run"]
        done = subprocess.run(
            [*valgrind, f"--dump-before={MARK}", *program, json.dumps(urls)],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        counts = iter(list(_counts_of(out)))
    next(counts)  # until the first mark
    found: dict[str, int] = {}
    for name in PATHS:
        turns = []
        for _ in range(TURNS):
            turns.append(next(counts) // COUNT)
            next(counts)  # until the next one
        found[name] = min(turns)
    return found


def _counts_of(out: Path) -> Iterator[int]:
    """Yield the instructions until each mark, and from the last one on."""
    number = 1
    while (part := out.with_name(f"{out.name}.{number}")).exists():
        yield _total_of(part)
        number += 1
    yield _total_of(out)


def _total_of(part: Path) -> int:
    found = re.search(r"^totals: (\d+)$", part.read_text(), re.MULTILINE)
    assert found is not None, part
    return int(found[1])


def exceeding(found: dict[str, int], limits: dict[str, int]) -> list[str]:
    """Return the names of the paths whose counts are above the limits with their tolerance."""
    return [
        name
        for name, count in found.items()
        if name in limits and count > limits[name] * (1 + TOLERANCES.get(name, TOLERANCE))
    ]


def versions() -> str:
    """Return what the counts depend on."""
    packages = (f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([python, platform.machine(), *packages])


def main() -> int:
    """Count, print, compare."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions",
        description="Count the instructions of a message on hot paths.",
    )
    parser.add_argument(
        "--check", action="store_true", help="fail when a path takes more than its limit"
    )
    parser.add_argument("--save", action="store_true", help="write the counts as the limits")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_paths(json.loads(options.run))
        return 0
    if shutil.which("valgrind") is None:
        print("instructions cannot be counted without valgrind (Debian's package of that name)")
        return 0
    limits: dict[str, dict[str, int]] = json.loads(LIMITS.read_text()) if LIMITS.exists() else {}
    known = limits.get(versions(), {})
    found = measure()
    exceeded = exceeding(found, known)
    for name, count in found.items():
        ratio = f"{count / known[name]:8.3f} of {known[name]:,}" if name in known else ""
        print(f"{name:42}{count:10,}{ratio}{'  too many' if name in exceeded else ''}")
    if not known:
        print(f"nothing to compare with for {versions()}")
    if options.save:
        limits[versions()] = found
        LIMITS.write_text(json.dumps(limits, indent=2, sort_keys=True) + "\n")
    return 1 if exceeded and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
