"""Power failures: ``python -m tests.quality.power BROKER [--unsafe] [--messages N]``.

Processes publish and consume.  All that the broker stores is on a file system in an image, which only
this process and its children see.  A copy of the image is what a disk has when the power fails: it lacks
all that the system has not written yet.  The broker is started again on the copy, and the outcome says
how many confirmed messages it lacks.

Needs root and loop devices; exits with NOT_HERE otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, Protocol

import gevent
from gevent.event import Event

import greenconn
from tests.brokers import couchdb_server, mongodb_server
from tests.brokers.beanstalk import Beanstalkd
from tests.brokers.keeper import Keeper
from tests.brokers.postgresql import PostgresServer
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer

MODULE: Final = "tests.quality.power"
#: The exit code where images cannot be mounted.
NOT_HERE: Final = 77
PUBLISHERS: Final = 2
#: Greenlets of each.
GREENLETS: Final = 3
#: Bytes that an image may take.
SIZE: Final = 2 * 2**30
#: Seconds without a message after which nothing is left.
SILENCE: Final = 15.0
#: Seconds within which all processes stop.
STOPS: Final = 60.0


class Served(Protocol):
    """What has an address, and can be started again."""

    @property
    def url(self) -> str: ...

    def start(self) -> None: ...


class File:
    """A SQLite file, which needs no server."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/file.db"

    def start(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Broker:
    """A broker that promises to have what it has confirmed.

    Attributes:
        make: called with a keeper, and whether it may lose what it has confirmed.
        unsafe: the query of its URL if it may lose.
        arguments: of the queue.
    """

    make: Callable[[Keeper, bool], Served]
    unsafe: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _redis(keeper: Keeper, unsafe: bool) -> Served:
    policy = "everysec" if unsafe else "always"
    return RedisServer(keeper, ("--appendonly", "yes", "--appendfsync", policy))


def _postgresql(keeper: Keeper, unsafe: bool) -> Served:
    return PostgresServer(
        keeper, ["fsync = on", f"synchronous_commit = {'off' if unsafe else 'on'}"]
    )


BROKERS: Final[Mapping[str, Broker]] = {
    "sqlite": Broker(lambda keeper, unsafe: File(keeper.directory), unsafe="?synchronous=NORMAL"),
    "redis": Broker(_redis),
    "postgresql": Broker(_postgresql),
    "beanstalk": Broker(
        lambda keeper, unsafe: Beanstalkd(keeper, ("-F",) if unsafe else (), is_durable=True)
    ),
    "classic": Broker(lambda keeper, unsafe: RabbitMQ(keeper)),
    "quorum": Broker(lambda keeper, unsafe: RabbitMQ(keeper), arguments={"x-queue-type": "quorum"}),
    "mongodb": Broker(
        lambda keeper, unsafe: mongodb_server.MongoDB(keeper, is_durable=True),
        unsafe="?journal=false",
    ),
    "couchdb": Broker(lambda keeper, unsafe: couchdb_server.CouchDB(keeper, is_kept=True)),
}


# -- the programs


def say(number: int) -> None:
    """Report a message that was confirmed, or that will be acknowledged.  Complete, or not at all."""
    os.write(1, b"%d\n" % number)


def queue_of(broker: Broker) -> greenconn.Queue:
    """Return the queue."""
    return greenconn.Queue("power", queue_arguments=dict(broker.arguments))


def options_of(url: str) -> dict[str, Any]:
    """Return options of a connection: leases, if it has any, end soon."""
    return {} if url.startswith("amqp") else {"transport_options": {"lease": 3.0}}


def publish(broker: Broker, url: str, first: int) -> None:
    """Publish without end."""
    numbers = count(first, PUBLISHERS)
    app, queue = greenconn.App(url, **options_of(url)), queue_of(broker)

    def run() -> None:
        while True:
            app.publish(queue, number := next(numbers))
            say(number)

    gevent.joinall([gevent.spawn(run) for _ in range(GREENLETS)], raise_error=True)


def consume(broker: Broker, url: str) -> None:
    """Handle without end, fewer than are published."""

    def handle(body: int, message: greenconn.Message) -> None:
        gevent.sleep(0.01)
        say(body)

    connection = greenconn.Connection(url, **options_of(url))
    greenconn.spawn_consumer(queue_of(broker), handle, connection=connection, prefetch_count=10)
    gevent.wait()


def missing(broker: Broker, url: str, wanted: set[int]) -> set[int]:
    """Return which of the messages a broker does not have."""
    wanted = set(wanted)
    news = Event()

    def handle(body: int, message: greenconn.Message) -> None:
        wanted.discard(body)
        news.set()

    with greenconn.Connection(url, **options_of(url)) as connection:
        consumer = greenconn.spawn_consumer(queue_of(broker), handle, connection=connection)
        while wanted and news.wait(SILENCE):
            news.clear()
        consumer.stop()
    return wanted


# -- the power


def mounted(image: Path, folder: Path) -> Path:
    """Mount an image; exit where that cannot be done."""
    folder.mkdir(exist_ok=True)
    # Its journal is written when a program asks for it, and not while the image is copied.
    command: list[str | Path] = ["mount", "-o", "loop,noatime,commit=600", image, folder]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        sys.exit(NOT_HERE)
    folder.chmod(0o1777)
    return folder


def others() -> Iterator[int]:
    """Yield all processes of this name space but this one."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            yield int(name)


def signal_all(number: int) -> None:
    """Send a signal to the others."""
    for process in others():
        with suppress(ProcessLookupError):
            os.kill(process, number)


def stop_all() -> None:
    """Stop the others, each of their threads.

    A thread stops behind the call of the system that it is in.  One that still wrote to the disk while
    the image is copied would leave a copy that no disk has at any time: the size of a file, say, without
    what is in it.
    """
    signal_all(signal.SIGSTOP)
    with gevent.Timeout(STOPS):
        while not all(map(is_stopped, others())):
            gevent.sleep(0.01)  # they are other processes


def is_stopped(process: int) -> bool:
    """Return whether all threads of a process are stopped, or have ended."""
    try:
        threads = [each.read_text() for each in Path(f"/proc/{process}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return False  # one ended meanwhile: look again
    # The name, in brackets, stands before the state.
    return all(each.rpartition(")")[2].split()[0] in "TZX" for each in threads)


def lines(file: Path) -> set[int]:
    """Return the numbers that were reported in a file."""
    return set(map(int, file.read_text().split()))


def main(name: str, unsafe: bool, messages: int, folder: Path) -> None:
    """Run it, and print the outcome."""
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    broker = BROKERS[name]
    image, copy, place = folder / "disk", folder / "copy", folder / "mounted"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(mounted(image, place))
    keeper = Keeper()
    server = broker.make(keeper, unsafe)
    server.start()
    url = server.url + (broker.unsafe if unsafe else "")
    # The failure is not that of a server, or of a queue, that has just been made: RabbitMQ does not
    # wait until the disk has the name under which it keeps a quorum queue.
    with greenconn.Connection(url) as connection:
        queue_of(broker)(connection.default_channel).declare()
    subprocess.run(["sync", "--file-system", place], check=True)
    roles = [("publish", str(first)) for first in range(PUBLISHERS)] + [("consume", "0")]
    said = [folder / f"said-{number}" for number in range(len(roles))]
    started = []
    for role, report in zip(roles, said, strict=True):
        with open(report, "wb") as output:
            command = [sys.executable, "-m", MODULE, name, *role, url]
            started.append(subprocess.Popen(command, stdout=output))
    while sum(len(each.read_bytes().split()) for each in said[:PUBLISHERS]) < messages:
        gevent.sleep(0.02)  # they run in other processes
        if any(process.poll() is not None for process in started):
            sys.exit("a publisher or consumer ended")
    stop_all()
    confirmed, handled = set().union(*map(lines, said[:PUBLISHERS])), lines(said[-1])
    subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    signal_all(signal.SIGKILL)
    subprocess.run(["umount", "--lazy", place], check=True)
    mounted(copy, place)
    server.start()
    lost = missing(broker, url, confirmed - handled)
    found = {"confirmed": len(confirmed), "handled": len(handled), "lost": len(lost)}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case [name, "publish", first, url]:
            publish(BROKERS[name], url, int(first))
        case [name, "consume", _, url]:
            consume(BROKERS[name], url)
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("broker", choices=BROKERS)
    parser.add_argument("--messages", type=int, default=3000, help="to publish (3000)")
    parser.add_argument("--unsafe", action="store_true", help="with options that may lose messages")
    parser.add_argument("--apart", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.apart is not None:
        try:
            main(options.broker, options.unsafe, options.messages, options.apart)
        finally:
            subprocess.run(
                ["umount", "--all-targets", "--lazy", options.apart / "mounted"], check=False
            )
            shutil.rmtree(options.apart, ignore_errors=True)
        sys.exit()  # all other processes end with the first one of their name space
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*apart, "true"], check=False).returncode:
        sys.exit(NOT_HERE)
    folder = tempfile.mkdtemp(prefix="power-")
    os.chmod(folder, 0o755)  # some servers run as another user
    os.execvp(apart[0], [*apart, sys.executable, "-m", MODULE, *sys.argv[1:], "--apart", folder])
