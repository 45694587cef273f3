"""Programs that end without a word: what they published has left, and they do not hang."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.transport.amqp.channel import Channel
from tests.fix_relay import Relay
from tests.fix_wires import until

COUNT = 200
Runs = Callable[..., float]

PRELUDE = """
import contextlib, multiprocessing, os, sys
import gevent, greenconn
from greenconn.connection import Connection
from greenconn.messaging import Producer
url, name = sys.argv[1:]

def publish_all(producer):
    for number in range({count}):
        producer.publish(number, name)
"""

ENDS = {
    "returns": "publish_all(Producer(Connection(url)))",
    "raises": "publish_all(Producer(Connection(url)))\nraise SystemExit(3)",
    "pooled": """
with greenconn.producers[Connection(url)].acquire(block=True) as producer:
    publish_all(producer)
""",
    "in a greenlet": """
def main():
    publish_all(Producer(Connection(url)))
    sys.exit(3)
gevent.spawn(main).join()
""",
    "default": """
greenconn.configure(url)
consumer = greenconn.spawn_consumer(name + "-other", lambda body, message: gevent.sleep(99))
assert consumer.wait_ready(20)
greenconn.publish(name + "-other", "x", declare=True)
connection = Connection(url)  # a name of it, as one that nobody refers to is closed with a warning
publish_all(Producer(connection))
""",
    "forked": """
connection = Connection(url)
connection.connect()
pid = os.fork()
if pid == 0:
    publish_all(Producer(connection))
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
""",
    "multiprocessing": """
connection = Connection(url)
connection.connect()
process = multiprocessing.get_context("fork").Process(
    target=publish_all, args=(Producer(connection),)
)
process.start()
process.join()
assert process.exitcode == 0
""",
    "consuming": """
connection = Connection(url)
consumer = connection.Consumer([greenconn.Queue(name)], callbacks=[print])
gevent.spawn(connection.drain_events)
publish_all(Producer(connection))
""",
}


@pytest.fixture
def queue(amqp_url: str, unique: str) -> Iterator[str]:
    with Connection(amqp_url) as connection:
        channel = connection.default_channel
        channel.queue_declare(unique, durable=True, auto_delete=False)
        yield unique
        for name in (unique, f"{unique}-other"):
            channel.queue_delete(name)


def run(code: str, url: str, name: str, patched: bool) -> tuple[float, int]:
    """Run a program; how long it took, and its exit code."""
    patch = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    program = patch + PRELUDE.format(count=COUNT) + code
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, url, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with gevent.Timeout(30), process:
        while process.poll() is None:
            gevent.sleep(0.01)
        printed = process.stderr.read() if process.stderr is not None else ""
    assert printed == ""
    return time.monotonic() - began, process.returncode


def is_full(channel: Channel, queue: str) -> bool:
    """Whether all messages are in a queue."""
    return bool(channel.queue_declare(queue, passive=True).message_count == COUNT)


@pytest.mark.parametrize(
    "end",
    ["returns", *(pytest.param(end, marks=pytest.mark.full) for end in ENDS if end != "returns")],
)
def test_what_was_published_has_arrived(
    end: str, amqp_url: str, queue: str, patched: bool, long: bool
) -> None:
    for _ in range(30 if long else 3):
        _, code = run(ENDS[end], amqp_url, queue, patched)
        assert code == (3 if "exit(3)" in ENDS[end] or "Exit(3)" in ENDS[end] else 0)
        with Connection(amqp_url) as connection:
            channel = connection.channel()
            # The broker has replied to the program, but a queue may count before it takes them.
            until(partial(is_full, channel, queue))
            channel.queue_purge(queue)


#: A greenlet for each call that may wait.
CALLS = """
from greenconn import rpc
queue = greenconn.Queue(name + "-other")
connection = greenconn.defaults.consuming_connection(url)

def drain():
    with greenconn.Consumer(connection, [queue], callbacks=[print]):
        connection.drain_events()

def again_and_again(function, *arguments):
    while True:
        function(*arguments, connection=url)

greenconn.publish(queue, "x", connection=url)
for call in (
    lambda: again_and_again(greenconn.publish, queue, "x"),
    lambda: again_and_again(greenconn.publish_many, queue, ["x"] * 10),
    lambda: again_and_again(rpc.call, name + "-other", "x"),
    lambda: connection.SimpleQueue(name).get(),
    drain,
):
    gevent.spawn(call)
gevent.sleep(0.5)
"""


@pytest.mark.parametrize("fixture", ["amqp_url", "redis_url", "sqlite_url"])
@pytest.mark.sampled(1)
def test_greenlets_that_the_program_leaves_end_without_a_word(
    request: pytest.FixtureRequest, fixture: str, queue: str, patched: bool
) -> None:
    _, status = run(CALLS, request.getfixturevalue(fixture), queue, patched)
    assert status == 0


@pytest.mark.full
def test_a_broker_that_is_silent_holds_the_end_up_for_two_seconds(
    relay: Relay, queue: str, patched: bool
) -> None:
    code = """
connection = Connection(url)
producer = Producer(connection)
producer.publish("x", name)
connection.default_channel.queue_declare(name, passive=True)
gevent.sleep(1.0)
for _ in range(10):
    with contextlib.suppress(greenconn.exceptions.OperationalError):
        producer.publish("x" * 1_000_000, name, timeout=0.1)
"""

    def stop() -> None:
        until(lambda: relay.open)
        gevent.sleep(0.5)
        relay.is_passing.clear()

    stopping = gevent.spawn(stop)
    took, status = run(code, relay.url, queue, patched)
    assert status == 0
    assert 2.5 < took < 20.0
    stopping.get(timeout=1)
    relay.is_passing.set()
