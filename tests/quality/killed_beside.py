"""What becomes of messages when the worker is killed, beside Celery, Dramatiq and BullMQ.

``python -m tests.quality.killed_beside [--messages 100] [--wait 60] [--node-modules FOLDER]``

BullMQ takes part where FOLDER is that of ``npm install bullmq ioredis``.

Each library runs a worker of its own with ten handlers at a time, over a RabbitMQ and a Redis of this
program.  The worker gets ``SIGKILL`` while ten handlers run, and is started again.  A row says how many
messages were handled within the wait, and how many of them twice.  All options are the libraries' own
defaults, unless the row names one.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from tests.brokers.keeper import Keeper
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer

#: Handlers that a worker runs at once; its programs name it, too.
CONCURRENCY: Final = 10
#: Seconds for a worker to begin.
SOON: Final = 60.0

_NOTE: Final = """
import os, time

def note(what, number):
    descriptor = os.open(os.environ["HISTORY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{what} {number}\\n".encode())
    os.close(descriptor)

def work(number):
    note("begin", number)
    time.sleep(0.5)
    note("end", number)

def send(count):
    for number in range(count):
        publish(number)
"""

_CELERY: Final = (
    _NOTE
    + """
from celery import Celery

app = Celery("worker", broker=os.environ["URL"])
app.conf.task_acks_late = app.conf.task_reject_on_worker_lost = bool(os.environ.get("LATE"))

@app.task
def handle(number):
    work(number)

publish = handle.delay
"""
)
_DRAMATIQ: Final = (
    _NOTE
    + """
import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

url = os.environ["URL"]
broker = RedisBroker(url=url) if url.startswith("redis") else RabbitmqBroker(url=url)
dramatiq.set_broker(broker)

@dramatiq.actor
def handle(number):
    work(number)

publish = handle.send
"""
)
_GREENCONN: Final = (
    _NOTE
    + """
import greenconn

app = greenconn.App(os.environ["URL"])

@app.consumer(greenconn.Queue("killed"), concurrency=10)
def handle(body, message):
    work(body)

def publish(number):
    app.publish(greenconn.Queue("killed"), number)
"""
)
_BULLMQ: Final = """
const { Queue, Worker } = require("bullmq");
const fs = require("fs");
const { hostname: host, port, pathname } = new URL(process.env.URL);
const db = Number(pathname.slice(1));
const connection = { host, port: Number(port), db, maxRetriesPerRequest: null };
const note = (what, number) => fs.appendFileSync(process.env.HISTORY, `${what} ${number}\\n`);

async function send(count) {
    const queue = new Queue("killed", { connection });
    for (let number = 0; number < count; number++) await queue.add("handle", number);
    await queue.close();
}

if (process.argv[2]) send(Number(process.argv[2]));
else new Worker("killed", async (job) => {
    note("begin", job.data);
    await new Promise((resolve) => setTimeout(resolve, 500));
    note("end", job.data);
}, { connection, concurrency: 10 });
"""


class Library(NamedTuple):
    """A library with its worker, and the command that sends as many messages as its argument says."""

    title: str
    source: str
    command: list[str]
    environment: dict[str, str] = {}
    sender: list[str] = [sys.executable, "-c", "import sys, worker; worker.send(int(sys.argv[1]))"]
    file: str = "worker.py"
    brokers: tuple[str, ...] = ("RabbitMQ", "Redis")


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


_CELERY_WORKER: Final = Library(
    "Celery",
    _CELERY,
    [_program("celery"), "-A", "worker", "worker", "-P", "gevent", "-c", str(CONCURRENCY)],
)
LIBRARIES: Final = [
    Library("greenconn", _GREENCONN, [_program("greenconn"), "run", "worker"]),
    _CELERY_WORKER,
    _CELERY_WORKER._replace(
        title="Celery, task_acks_late and task_reject_on_worker_lost", environment={"LATE": "1"}
    ),
    Library(
        "Dramatiq",
        _DRAMATIQ,
        [_program("dramatiq-gevent"), "worker", "-p", "1", "-t", str(CONCURRENCY)],
    ),
]


def bullmq(modules: Path) -> Library:
    """BullMQ, as it is installed in a folder."""
    return Library(
        "BullMQ",
        _BULLMQ,
        worker := ["node", "worker.js"],
        {"NODE_PATH": str(modules.resolve())},
        sender=worker,
        file="worker.js",
        brokers=("Redis",),
    )


class Outcome(NamedTuple):
    """The numbers of messages."""

    handled: int
    twice: int
    seconds: float


def measured(library: Library, url: str, messages: int, wait: float) -> Outcome:
    """Kill a worker in its work, and return what became of the messages."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / library.file).write_text(library.source)
        history = folder / "history"
        history.touch()
        environment = {
            **os.environ,
            **library.environment,
            "URL": url,
            "HISTORY": str(history),
            "PYTHONPATH": f"{folder}{os.pathsep}{os.getcwd()}",
        }
        subprocess.run([*library.sender, str(messages)], cwd=folder, env=environment, check=True)
        first = _start(library, folder, environment)
        _until(lambda: _count(history, "begin") >= CONCURRENCY, SOON)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        second = _start(library, folder, environment)
        began = time.monotonic()
        try:
            _until(lambda: len(_ended(history)) == messages, wait)
            return Outcome(
                len(_ended(history)),
                sum(each > 1 for each in _ended(history).values()),
                time.monotonic() - began,
            )
        finally:
            os.killpg(second.pid, signal.SIGKILL)
            second.wait()


def _start(library: Library, folder: Path, environment: dict[str, str]) -> Any:
    return subprocess.Popen(
        library.command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def _count(history: Path, what: str) -> int:
    return sum(line.startswith(what) for line in history.read_text().splitlines())


def _ended(history: Path) -> Counter[str]:
    lines = (line.split() for line in history.read_text().splitlines())
    return Counter(number for what, number in lines if what == "end")


def main() -> None:
    """Print a row for each library and broker."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.quality.killed_beside", description=__doc__
    )
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--wait", type=float, default=60.0, help="seconds, at most")
    parser.add_argument("--node-modules", type=Path, help="the folder that has bullmq")
    options = parser.parse_args()
    libraries = [*LIBRARIES, *([bullmq(options.node_modules)] if options.node_modules else [])]
    with Keeper() as keeper:
        rabbitmq, redis = RabbitMQ(keeper), RedisServer(keeper)
        rabbitmq.start()
        redis.start()
        for number, library in enumerate(libraries):
            urls = {
                "RabbitMQ": rabbitmq.url,
                "Redis": f"{redis.url.removesuffix('/0')}/{number}",
            }
            for broker in library.brokers:
                found = measured(library, urls[broker], options.messages, options.wait)
                print(
                    f"{library.title:54} {broker:9} handled {found.handled:4} of "
                    f"{options.messages}, twice {found.twice}, after {found.seconds:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
