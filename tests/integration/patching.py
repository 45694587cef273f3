"""A program that is patched at some time, wholly or partly: what ``test_patching`` runs.

    python -m tests.integration.patching HOW URL NAME

HOW says when and what to patch; the rest is the same for all.  Whatever goes wrong ends the program with
an error.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

from gevent import monkey

#: What is patched before anything of ours is imported.
FIRST: dict[str, Callable[[], Any]] = {
    "never": lambda: None,
    "first": lambda: monkey.patch_all(),
    "no-ssl": lambda: monkey.patch_all(ssl=False),
    "no-thread": lambda: monkey.patch_all(thread=False),
    "no-socket": lambda: monkey.patch_all(socket=False, dns=False, ssl=False),
    "only-socket": lambda: monkey.patch_socket(),
    "only-time": lambda: monkey.patch_time(),
    "only-thread": lambda: monkey.patch_thread(),
}

how, url, name = sys.argv[1:]
warnings.simplefilter("ignore", monkey.MonkeyPatchWarning)  # it is late on purpose
FIRST.get(how, FIRST["never"])()

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402

import greenconn  # noqa: E402
from greenconn import Connection, Queue, pools, rpc  # noqa: E402
from greenconn.exceptions import WrongHub  # noqa: E402
from greenconn.simple import SimpleQueue  # noqa: E402

SOON = 30.0

get_original: Any = monkey.get_original


def publish_and_handle(queue: str, connection: Connection, count: int = 30) -> None:
    """A consumer and its publishers."""
    handled: list[int] = []
    done = Event()

    def handle(body: int, message: Any) -> None:
        gevent.sleep(0.001)
        handled.append(body)
        if len(handled) == count:
            done.set()

    consumer = greenconn.spawn_consumer(
        Queue(queue, expires=60), handle, connection=connection, concurrency=5
    )
    assert consumer.wait_ready(SOON)
    for each in [
        gevent.spawn(greenconn.publish, queue, number, connection=connection)
        for number in range(count)
    ]:
        each.get(timeout=SOON)
    assert done.wait(SOON)
    assert sorted(handled) == list(range(count))
    assert consumer.stop(SOON)


def call(queue: str, connection: Connection) -> None:
    """A server of calls and a caller."""
    server = rpc.spawn_server(Queue(queue, expires=60), sum, connection=connection)
    assert server.wait_ready(SOON)
    assert rpc.call(queue, [1, 2, 3], connection=connection, timeout=SOON) == 6
    assert server.stop(SOON)


def borrow(queue: str, connection: Connection) -> None:
    """kombu's pools and simple queues, by many greenlets."""

    def put(number: int) -> None:
        with pools.producers[connection].acquire(block=True, timeout=SOON) as producer:
            producer.publish(number, routing_key=queue)

    with SimpleQueue(connection, queue, queue_opts={"expires": 60}, no_ack=True) as simple:
        for each in [gevent.spawn(put, number) for number in range(30)]:
            each.get(timeout=SOON)
        assert sorted(simple.get(timeout=SOON).payload for _ in range(30)) == list(range(30))
        simple.queue.exchange.delete()
    pools.connections[connection].force_close_all()


def use(connection: Connection, queue: str) -> None:
    """All of it."""
    ticks: list[int] = []

    def tick() -> None:
        while True:
            ticks.append(0)
            gevent.sleep(0.001)

    ticker = gevent.spawn(tick)
    publish_and_handle(f"{queue}-1", connection)
    call(f"{queue}-2", connection)
    borrow(f"{queue}-3", connection)
    assert len(ticks) > 10, "others did not run meanwhile"
    ticker.kill()
    connection.close()


def in_a_native_thread(function: Callable[[], Any], called: str) -> Any:
    """What *function* returns in a thread of the operating system, whatever is patched."""
    outcome: list[Any] = []
    start_new_thread = get_original("_thread", "start_new_thread")
    threading: Any = sys.modules["threading"]

    def run() -> None:
        # A thread that Python knows by its name, as those of ``threading`` are.
        try:
            if not monkey.is_module_patched("threading"):
                threading.current_thread().name = called
            outcome.append(function())
        except BaseException as exc:
            outcome.append(exc)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    start_new_thread(run, ())
    with gevent.Timeout(SOON):
        while not outcome:
            gevent.sleep(0.005)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def another_thread(connection: Connection) -> None:
    """A native thread has a hub and a connection of its own, and cannot use ours."""
    connection.connect()

    def refused() -> str:
        try:
            connection.default_channel.queue_declare(f"{name}-x")
        except WrongHub as exc:
            return str(exc)
        raise AssertionError("it was not refused")

    text = in_a_native_thread(refused, "legacy")
    assert "'MainThread'" in text, text
    assert "and was used from thread" in text, text
    assert "Connection.clone()" in text, text
    if not monkey.is_module_patched("threading"):
        assert "'legacy'" in text, text
    in_a_native_thread(lambda: use(connection.clone(), f"{name}-thread"), "legacy")
    # And by the default connections, of which each thread has its own.
    greenconn.configure(url)
    greenconn.publish(Queue(f"{name}-d", expires=60), "ours")
    in_a_native_thread(lambda: greenconn.publish(f"{name}-d", "theirs", declare=True), "legacy")
    assert connection.connected


def main() -> None:
    connection = Connection(url)
    if how == "later":
        # As an old application does: what it imports has begun to work when it patches.
        connection.connect()
        monkey.patch_all()
    elif how == "imported":
        monkey.patch_all()
    elif how == "midway":
        publish_and_handle(f"{name}-0", connection)
        monkey.patch_all()
        publish_and_handle(f"{name}-0b", connection)
    with gevent.Timeout(2 * SOON):
        another_thread(connection)
        use(connection, name)
    print("done")


if __name__ == "__main__":
    main()
