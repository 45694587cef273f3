"""Processes that fork, are told to end, end without a word, or live for long."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.messaging import Producer
from greenconn.publishing import publish
from tests.fix_wires import until
from tests.integration.processes import Outcome, Running, run, start
from tests.quality.faults.interruptions.targets import memory_target, running_target
from tests.quality.faults.soak import soak

SOON = 30.0

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(params=["amqp", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """A broker that outlives the programs."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["amqp", "redis", "memory"])
def any_url(request: pytest.FixtureRequest, unique: str) -> str:
    """A broker of any kind."""
    if request.param == "memory":
        return f"memory:///{unique}"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def queue(url: str, unique: str) -> Iterator[str]:
    """A queue that is there before the programs."""
    with connection_to(url) as connection:
        connection.default_channel.queue_declare(unique, durable=True, auto_delete=False)
        yield unique
        connection.default_channel.queue_delete(unique)


def connection_to(url: str) -> Connection:
    """As the programs make theirs: on Redis what the dead hold is back after a second."""
    options = {"lease": 1.0} if url.startswith("redis") else {}
    return Connection(url, transport_options=options)


def in_short(is_one: bool, long: bool) -> None:
    """Skip what the short size leaves out: each process, plain and patched, has some of the cases."""
    if not long and not is_one:
        pytest.skip("runs only with --long")


PRELUDE = """
import multiprocessing, os, signal, sys
import gevent, gevent.os
import greenconn
from greenconn.connection import Connection
from greenconn.messaging import Producer
url, name = sys.argv[1:]

def connect(**options):
    if url.startswith("redis"):
        options["lease"] = 1.0
    return Connection(url, transport_options=options)

"""


def program(code: str, url: str, name: str, patched: bool) -> tuple[str, ...]:
    """The arguments of a Python that runs *code*."""
    patch = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    return ("-W", "error", "-c", patch + PRELUDE + code, url, name)


def own_errors(outcome: Outcome) -> str:
    """What a program wrote to standard error, but for what it found of those of other tests."""
    lines = outcome.errors.splitlines(keepends=True)
    return "".join(each for each in lines if "dead consumers were requeued" not in each)


def take_all(url: str, queue: str, count: int, more: int = 0) -> list[Any]:
    """Take *count* messages; see that there are no more, except *more* perhaps.  May switch."""
    bodies: list[Any] = []
    with connection_to(url) as connection:
        channel = connection.default_channel

        def took() -> bool:
            message = channel.basic_get(queue, no_ack=True)
            if message is not None:
                bodies.append(message.decode())
            return len(bodies) >= count

        until(took, SOON)
        for _ in range(more):
            took()
        assert channel.basic_get(queue) is None
    return bodies


def lines_of(running: Running, count: int) -> list[str]:
    """The next lines of a program's output.  May switch."""
    return [running.line() for _ in range(count)]


# Told to end

ENDS = {
    # Python's own: nothing of ours runs any more.
    "killed": "",
    "exit": "signal.signal(signal.SIGTERM, lambda *arguments: sys.exit(0))\n",
    "orderly": """
def stop():
    greenconn.stop_consumers(60)
    working.kill()
gevent.signal_handler(signal.SIGTERM, stop)
""",
}

PUBLISHING = """
connection = connect()
def work():
    number = 0
    while True:
        greenconn.publish(name, number, connection=connection, declare=True)
        print(number, flush=True)
        number += 1
working = gevent.spawn(work)
{end}
working.join()
connection.close()
"""


@pytest.mark.parametrize("end", ENDS)
def test_asked_to_stop_while_it_publishes(
    end: str, url: str, queue: str, patched: bool, long: bool
) -> None:
    """What it was told is published is there, in order and once."""
    in_short((end, url[:4]) == (("killed", "redi") if patched else ("orderly", "amqp")), long)
    running = start(*program(PUBLISHING.format(end=ENDS[end]), url, queue, patched))
    try:
        lines = lines_of(running, 30)
        running.signal(signal.SIGTERM)
        outcome = running.outcome()
    finally:
        running.end()
    lines += outcome.output.split()
    assert own_errors(outcome) == ""
    assert outcome.code == (-signal.SIGTERM if end == "killed" else 0)
    confirmed = [int(line) for line in lines]
    assert confirmed == list(range(len(confirmed)))
    bodies = take_all(url, queue, len(confirmed), 1)
    # The one that was under way may have come, too.
    assert bodies in (confirmed, [*confirmed, len(confirmed)])


HANDLING = """
connection = connect()
def handle(body, message):
    gevent.sleep(0.02 if body < 24 else 1.0)  # it cannot end before it is asked to stop
    print(body, flush=True)
consumer = greenconn.spawn_consumer(name, handle, connection=connection, concurrency=4)
working = gevent.spawn(consumer.join)
{end}
working.join()
connection.close()
"""


@pytest.mark.parametrize("end", ENDS)
def test_asked_to_stop_while_it_handles(
    end: str, url: str, queue: str, patched: bool, long: bool
) -> None:
    """Each message was handled, or comes to the next one; twice only if its ack was cut off."""
    in_short((end, url[:4]) == (("killed", "amqp") if patched else ("orderly", "redi")), long)
    count = 100
    with connection_to(url) as connection:
        for number in range(count):
            publish(queue, number, connection=connection, declare=True)
    running = start(*program(HANDLING.format(end=ENDS[end]), url, queue, patched))
    try:
        lines = lines_of(running, 20)
        running.signal(signal.SIGTERM)
        outcome = running.outcome()
    finally:
        running.end()
    handled = [int(line) for line in lines + outcome.output.split()]
    assert own_errors(outcome) == ""
    assert outcome.code == (-signal.SIGTERM if end == "killed" else 0)
    assert len(set(handled)) == len(handled) < count
    left: list[int] = []

    def rest(body: Any, message: Any) -> None:
        left.append(body)
        message.ack()

    with connection_to(url) as connection:
        consumer = connection.Consumer([Queue(queue)], callbacks=[rest])
        with consumer:
            until(lambda: drained(connection) or len({*handled, *left}) == count, SOON)
    assert sorted({*handled, *left}) == list(range(count))
    twice = Counter([*handled, *left]).most_common(1)[0][1]
    assert twice <= (1 if end == "orderly" else 2)


def drained(connection: Connection) -> bool:
    """Handle an event if one comes soon; never true.  May switch."""
    try:
        connection.drain_events(timeout=0.05)
    except TimeoutError:
        pass
    return False


# Ending without a word

SILENT = """
connection = connect(confirm_publish=True)
connection.connect()
pool = connection.Pool(3)
held = [pool.acquire() for _ in range(2)]
channel = connection.channel()
got = []
def handle(body, message):
    gevent.sleep(99)
consumer = greenconn.spawn_consumer(name + "-c", handle, connection=connection)
assert consumer.wait_ready(20)
plain = connection.Consumer([greenconn.Queue(name + "-c")], callbacks=[print])
plain.consume()
draining = gevent.spawn(connection.drain_events)
greenconn.publish(name + "-c", "x", connection=connection, declare=True)
gevent.sleep(0.05)
simple = connection.SimpleQueue(name + "-s")
simple.put("x")
with greenconn.producers[connection].acquire(block=True) as producer:
    for number in range(50):
        producer.publish(number, name)
for number in range(50):
    Producer(held[0]).publish(number, name)
waiting = gevent.spawn(pool.acquire, block=True)
gevent.sleep(0)
{end}
"""


#: For the plain process, and for the patched one.
SHORT_ENDS = ({("", "amqp"), ("ra", "redi")}, {("sy", "redi"), ("os", "amqp"), ("", "memo")})


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise KeyboardInterrupt", "os._exit(3)"])
def test_an_end_without_a_word(
    end: str, any_url: str, unique: str, patched: bool, long: bool
) -> None:
    """No noise, no wait, and what was confirmed is there."""
    in_short((end[:2], any_url[:4]) in SHORT_ENDS[patched], long)
    is_shared = not any_url.startswith("memory")
    code = SILENT.format(end=end)
    with connection_to(any_url) as connection:
        if is_shared:
            connection.default_channel.queue_declare(unique, durable=True, auto_delete=False)
        started = "first = connect()\ngreenconn.publish(name, 0, connection=first, declare=True)\n"
        code = code if is_shared else f"{started}{code}"
        began = time.monotonic()
        outcome = run(*program(code, any_url, unique, patched))
        took = time.monotonic() - began
        errors = own_errors(outcome)
        if end.startswith("raise"):
            assert errors.count("Traceback") == 1
            assert errors.endswith("\nKeyboardInterrupt\n")
            errors = ""
        assert errors == ""
        assert outcome.code == (3 if "3" in end else -signal.SIGINT if end else 0)
        assert took < SOON
        if is_shared:
            assert sorted(take_all(any_url, unique, 100)) == sorted([*range(50), *range(50)])
            for suffix in ("", "-c", "-s"):
                connection.default_channel.queue_delete(unique + suffix)


# Forks

FIVE = """
COUNT = {count}
connection = connect(confirm_publish=True)
producer = Producer(connection)
producer.publish("before", name)
greenconn.publish(name, "before", connection=connection, declare=True)

def publish_all(who):
    # Two ways, and four greenlets in each, all over what the parent had opened.
    def work(each):
        for number in range(each, COUNT, 4):
            producer.publish([who, "producer", number], name)
            greenconn.publish(name, [who, "short", number], connection=connection, declare=True)
    with gevent.Timeout(30):
        gevent.joinall([gevent.spawn(work, each) for each in range(4)], raise_error=True)

def child(who):
    publish_all(who)
    connection.close()

def forked(who):
    pid = FORK()
    if not pid:
        code = 1
        try:
            child(who)
            code = 0
        finally:
            os._exit(code)
    return pid

def ended(pid):
    # gevent 26.9 may take the end of a child that it watches.
    try:
        while (status := os.waitpid(pid, os.WNOHANG))[0] == 0:
            gevent.sleep(0.005)
    except ChildProcessError:
        return 0
    return status[1]

how = "{how}"
pending = gevent.spawn(publish_all, 0)
gevent.sleep(0.002)  # the parent is in the midst of it
gevent.idle()  # a greenlet that is ready to run now would go on in the children, too
if how == "multiprocessing":
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=child, args=(who,)) for who in range(1, 6)]
    for each in children:
        each.start()
    pending.get()
    while any(each.is_alive() for each in children):
        gevent.sleep(0.005)
    codes = [each.exitcode for each in children]
else:
    FORK = gevent.os.fork if how == "gevent" else os.fork
    pids = [forked(who) for who in range(1, 6)]
    pending.get()
    codes = [ended(pid) for pid in pids]
assert codes == [0] * 5, codes
producer.publish("after", name)
connection.close()
"""


@pytest.mark.parametrize("how", ["os", "gevent", "multiprocessing"])
def test_five_children_of_one_publisher(
    how: str, url: str, queue: str, patched: bool, long: bool
) -> None:
    """Forked in the midst of a publish: none gets another's confirms, and all messages come once."""
    in_short((how, url[:4]) == (("gevent", "redi") if patched else ("os", "amqp")), long)
    count = 200 if long else 24
    outcome = run(*program(FIVE.format(count=count, how=how), url, queue, patched))
    assert (outcome.code, own_errors(outcome)) == (0, "")
    bodies = take_all(url, queue, 3 + 6 * 2 * count)
    found = Counter(map(str, bodies))
    assert found.pop("before") == 2
    assert found.pop("after") == 1
    assert set(found.values()) == {1}
    assert len(found) == 12 * count


FORKED_MEMORY = """
connection = connect()
greenconn.publish(name, "parent", connection=connection, declare=True)
pid = os.fork()
if not pid:
    code = 1
    try:
        greenconn.publish(name, "child", connection=connection, declare=True)
        simple = connection.SimpleQueue(name)
        assert simple.get(timeout=30).payload == "child"
        assert simple.qsize() == 0
        code = 0
    finally:
        os._exit(code)
try:
    while not os.waitpid(pid, os.WNOHANG)[0]:
        gevent.sleep(0.005)
except ChildProcessError:
    pass
simple = connection.SimpleQueue(name)
assert simple.get(timeout=30).payload == "parent"
assert simple.qsize() == 1 - 1
simple.close()
connection.close()
print("both went on")
"""


def test_a_fork_with_the_memory_broker(unique: str, patched: bool) -> None:
    """The child has a broker of its own, which is empty."""
    outcome = run(*program(FORKED_MEMORY, f"memory:///{unique}", unique, patched))
    assert (outcome.code, own_errors(outcome), outcome.output) == (0, "", "both went on\n")


# For long


def keep_no_records(caplog: pytest.LogCaptureFixture) -> None:
    """Have pytest keep no log records, each of which holds an error and its frames."""
    for name in ("amqp", "greenconn"):
        caplog.set_level(logging.CRITICAL, name)


def test_connections_opened_and_closed_leave_nothing(
    any_url: str, unique: str, long: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand of them: no descriptor, no greenlet, no object."""
    rounds = 1000 if long else 100
    keep_no_records(caplog)

    def once() -> None:
        with Connection(any_url, transport_options={"confirm_publish": True}) as connection:
            channel = connection.default_channel
            channel.queue_declare(unique, durable=True, auto_delete=False)
            Producer(connection).publish("x", unique)
            with connection.Consumer([Queue(unique)], callbacks=[lambda *message: None]):
                pass
            channel.queue_delete(unique)

    def objects() -> Counter[str]:
        gevent.sleep(0.01)
        gc.collect()
        return Counter(type(each).__name__ for each in gc.get_objects())

    def grown() -> dict[str, int]:
        more = (objects() - before).items()
        # Less is what was imported, or is cached, meanwhile.
        return {name: count for name, count in more if count > rounds / 2}

    for _ in range(rounds // 4):
        once()
    objects()  # what the first look itself leaves in caches is not counted
    before, descriptors = objects(), len(os.listdir("/proc/self/fd"))
    for _ in range(rounds):
        once()
    with suppress(AssertionError):
        until(lambda: not grown())  # what is under way ends
    assert not grown()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.parametrize("name", ["rabbitmq", "redis", "memory"])
def test_nothing_grows_in_a_long_run(
    name: str,
    request: pytest.FixtureRequest,
    long: bool,
    patched: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ten minutes with a cut every five seconds, or a few seconds with many."""
    keep_no_records(caplog)
    in_short(name == ("redis" if patched else "rabbitmq"), long)
    if name == "memory":
        making = memory_target()
    else:
        fixture = "amqp_url" if name == "rabbitmq" else "redis_url"
        making = running_target(name, request.getfixturevalue(fixture))
    with making as target:
        figures = soak(target, *((600.0, 5.0) if long else (3.0, 0.7)))
    assert figures.problems() == []
    assert figures.published
    assert figures.cuts
