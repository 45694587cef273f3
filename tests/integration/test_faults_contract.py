"""What every store withstands: servers that go or freeze, cut connections, processes that are killed.

The same of RabbitMQ is in ``test_faults_recovery``.
"""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.exceptions import OperationalError, PublishTimeout
from greenconn.wire.resp import pack
from tests.fix_relay import RelayFactory
from tests.fix_wires import until
from tests.forked import holds_in_child
from tests.integration.beanstalk_clients import raw_to
from tests.integration.capabilities import KINDS, Can, Kind, needs
from tests.integration.conftest import able
from tests.integration.contract import SOON
from tests.integration.processes import Running, start

# What a test waits for has deadlines of its own.
pytestmark = pytest.mark.timeout(900)

#: Seconds that a store may be waited for which had much to do again.
LATE = 6 * SOON
#: Seconds of a lease, several times what a busy machine may keep a process from running.
LEASE = 3.0
#: Messages that a process holds.
HELD = 5
#: Brokers that tell how many messages are held.
COUNTING_HELD = ("Redis", "beanstalk")
#: Messages that may wait before publishers wait, too: a busy machine handles few in a second.
BACKLOG = 50

#: Takes messages, prints them, and holds each for so many seconds.
HOLDER = """
import json
import sys
import gevent
import greenconn

url, options, queue, count, seconds = sys.argv[1:]

def handle(body, message):
    print(body, flush=True)
    gevent.sleep(float(seconds))

connection = greenconn.Connection(url, transport_options=json.loads(options))
greenconn.spawn_consumer(queue, handle, connection=connection, prefetch_count=int(count),
                         concurrency=int(count)).join()
"""

#: Takes with several links what it can get, and prints it.
CLAIMERS = """
import json
import sys
import gevent
import greenconn

def handle(body, message):
    print(body, flush=True)

url, options, queue = sys.argv[1:]
consumers = []
for _ in range(5):
    connection = greenconn.Connection(url, transport_options=json.loads(options))
    consumers.append(greenconn.spawn_consumer(queue, handle, connection=connection,
                                              prefetch_count=20, concurrency=5))
assert all(each.wait_ready(30) for each in consumers)
print("ready", flush=True)
gevent.sleep(1000)
"""


@pytest.fixture(params=[name for name, kind in KINDS.items() if kind.url and name != "amqp"])
def broker_kind(request: pytest.FixtureRequest) -> Kind:
    """Each store in turn that is outside of this process."""
    return able(KINDS[request.param], request)


@pytest.fixture
def server(broker_kind: Kind, request: pytest.FixtureRequest) -> Any:
    """A server of that kind which the test may stop, kill or pause."""
    assert broker_kind.server is not None
    return request.getfixturevalue(broker_kind.server)


@pytest.fixture
def programs() -> Iterator[Callable[..., Running]]:
    """Starts programs with ``programs(text, argument...)``; they are ended after the test."""
    running: list[Running] = []

    def begin(program: str, *arguments: str) -> Running:
        running.append(start("-c", program, *arguments))
        return running[-1]

    yield begin
    for each in running:
        each.signal(signal.SIGCONT)
        each.end()


def options_of(kind: Kind, **options: Any) -> dict[str, Any]:
    """Options of a connection to that kind."""
    return {**kind.options, "lease": LEASE, **options}


def impatient(kind: Kind, **options: Any) -> dict[str, Any]:
    """The same of one that reports at once what it would try again by itself."""
    if kind.title == "SQS":
        options |= {"retries": 0, "wait_time_seconds": 1}
    return options_of(kind, **options)


def rest(connection: Connection, kind: Kind, queue: str) -> int:
    """How many messages of *queue* there are, held ones included as far as the broker tells."""
    if kind.title == "Redis":
        both = "return redis.call('LLEN', KEYS[1]) + redis.call('HLEN', 'unacked')"
        return int(connection.connection.commands.call(pack("EVAL", both, "1", queue)))
    if kind.title == "beanstalk":
        with raw_to(connection.as_uri(include_password=True)) as raw:
            counts = raw.counts(queue)  # none where there is no tube any more
            states = ("ready", "reserved", "delayed", "buried")
            return sum(int(counts.get(f"current-jobs-{state}", 0)) for state in states)
    return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def collect(running: Running, got: Counter[int]) -> None:
    """Note what a program prints, until it ends."""
    while True:
        try:
            got[int(running.line(LATE))] += 1
        except EOFError:
            return


class Traffic:
    """Publishes from many greenlets, and notes what was confirmed and what was handled.

    Arguments:
        server: is started again if it ends by itself: where connections are cut within a request,
            pouchdb-server 4.2 stumbles now and then over a bulk write of which it has no results.
            Its data are on its disk, so nothing may be lost by that either.
    """

    def __init__(
        self,
        kind: Kind,
        server: Any,
        names: Sequence[str],
        senders: int,
        urls: tuple[str, str] | None = None,
    ) -> None:
        self._kind = kind
        self._server = server
        self._names = names
        self._is_over = False
        consume_at, publish_at = urls or (server.url, server.url)
        options = options_of(kind)
        self.consuming = Connection(consume_at, transport_options=options)
        self.publishing = Connection(publish_at, transport_options=options)
        self.confirmed: set[str] = set()
        self.handled: Counter[str] = Counter()
        self.consumers = [
            greenconn.spawn_consumer(
                name,
                self._handle,
                connection=self.consuming,
                prefetch_count=prefetch,
                concurrency=min(prefetch, 10),
            )
            for name, prefetch in zip(names, cycle((50, 1)), strict=False)
        ]
        self._senders = [gevent.spawn(self._send, number) for number in range(senders)]

    def _handle(self, body: str, message: Any) -> None:
        gevent.sleep(0.001)
        self.handled[body] += 1

    def _send(self, sender: int) -> None:
        name = self._names[sender % len(self._names)]
        number = 0
        while not self._is_over:
            if len(self.confirmed) - len(self.handled) > BACKLOG:
                gevent.sleep(0.01)
                continue
            body = f"{sender}.{number}"
            number += 1
            try:
                greenconn.publish(
                    name, body, connection=self.publishing, timeout=LATE, declare=True
                )
            except PublishTimeout:
                continue  # nobody has promised anything
            self.confirmed.add(body)
            gevent.sleep(random.random() / 2)

    def goes_on(self, count: int = 20) -> None:
        """Wait until so many more are published, and all that were until then handled."""
        count += len(self.confirmed)
        self._until(lambda: len(self.confirmed) >= count)
        confirmed = set(self.confirmed)
        self._until(lambda: confirmed <= self.handled.keys())

    def _until(self, is_so: Callable[[], bool]) -> None:
        def holds() -> bool:
            if not self._server.is_running:
                self._server.start()
            return is_so()

        until(holds, LATE)

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        try:
            if kind is None:
                self._end()
        finally:
            gevent.killall(self._senders)
            self.consuming.close()
            self.publishing.close()

    def _end(self) -> None:
        """Stop, and see that what was confirmed was handled, and that nothing is left."""
        self._is_over = True
        self._until(lambda: all(each.ready() for each in self._senders))
        gevent.joinall(self._senders, raise_error=True)
        self._until(lambda: self.confirmed <= self.handled.keys())
        # What was held when a connection was cut may come a second time, after all the others.
        with Connection(self._server.url, transport_options=options_of(self._kind)) as asking:

            def is_empty() -> bool:
                return not any(rest(asking, self._kind, name) for name in self._names)

            self._until(is_empty)
            assert all(each.stop(SOON) for each in self.consumers)
            # Others do not count what a cut connection holds until its lease ends.
            assert self._kind.title not in COUNTING_HELD or is_empty()
        twice = sum(count > 1 for count in self.handled.values())
        print(f"{len(self.confirmed)} confirmed, {len(self.handled)} handled, {twice} twice")


# -- servers that go and come back


@needs(Can.SERVER, Can.DURABLE)
@pytest.mark.sampled(2)
def test_restarts_under_load_lose_nothing(
    broker_kind: Kind, server: Any, unique: str, long: bool
) -> None:
    restarts, queues, senders = (20, 20, 500) if long else (2, 5, 50)
    senders = min(senders, 5) if broker_kind.is_slow else senders
    names = [f"{unique}-{number}" for number in range(queues)]
    with Traffic(broker_kind, server, names, senders) as traffic:
        traffic.goes_on()
        for number in range(restarts):
            (server.kill, server.stop)[number % 2]()
            gevent.sleep(random.uniform(0.1, 0.5))
            server.start()
            traffic.goes_on()


@pytest.mark.full
@needs(Can.SERVER)
def test_server_that_is_away_at_first(broker_kind: Kind, server: Any, unique: str) -> None:
    count = 20 if broker_kind.is_slow else 200
    got: Counter[int] = Counter()
    server.kill()
    with Connection(server.url, transport_options=options_of(broker_kind)) as connection:
        with pytest.raises((OSError, *connection.connection_errors)):
            connection.connect()
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: got.update([body]), connection=connection
        )
        publishes = [
            gevent.spawn(greenconn.publish, unique, each, connection=connection, timeout=LATE)
            for each in range(count)
        ]
        assert not consumer.wait_ready(0.2)
        server.start()
        gevent.joinall(publishes, raise_error=True)
        until(lambda: len(got) == count, LATE)
        assert consumer.stop(SOON)


@pytest.mark.full
@needs(Can.SERVER)
def test_connection_notices_that_its_server_is_gone(
    broker_kind: Kind, server: Any, unique: str
) -> None:
    """One that consumes, though nobody asks it for anything; its queue is made again if need be."""
    got: set[str] = set()
    options = impatient(broker_kind)
    with Connection(server.url, transport_options=options) as connection:
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: got.add(body), connection=connection
        )
        assert consumer.wait_ready(SOON)
        server.kill()
        until(lambda: not connection.connected, LATE)
        server.start()
        greenconn.publish(unique, "after", connection=connection, timeout=LATE)
        until(lambda: got == {"after"}, LATE)
        assert consumer.stop(SOON)


# -- servers that do not answer


@pytest.mark.full
@needs(Can.SERVER)
def test_frozen_server_keeps_nobody_for_ever(broker_kind: Kind, server: Any, unique: str) -> None:
    hasty_options = impatient(broker_kind, reply_timeout=1.0)
    with (
        Traffic(broker_kind, server, [unique], 3) as traffic,
        Connection(server.url, transport_options=options_of(broker_kind)) as patient,
        Connection(server.url, transport_options=hasty_options) as hasty,
        Connection(server.url, connect_timeout=1) as late,
    ):
        traffic.goes_on()
        for each in (patient, hasty):
            greenconn.publish(unique, "before", connection=each, timeout=LATE, declare=True)
        server.pause()
        with pytest.raises((OSError, *late.connection_errors)):
            late.connect()
        with pytest.raises(PublishTimeout):
            greenconn.publish(unique, "in vain", connection=patient, timeout=0.3)
        with pytest.raises(PublishTimeout):
            patient.Producer().publish("in vain", routing_key=unique, timeout=0.3)
        with pytest.raises((OSError, OperationalError, *hasty.recoverable_connection_errors)):
            hasty.Producer().publish("in vain", routing_key=unique, retry=False)
        publishing = gevent.spawn(
            greenconn.publish, unique, "after", connection=patient, timeout=LATE
        )
        gevent.sleep(0)
        server.resume()
        publishing.get(timeout=LATE)
        greenconn.publish(unique, "at last", connection=hasty, timeout=LATE)
        until(lambda: {"before", "after", "at last"} <= traffic.handled.keys(), LATE)
        traffic.goes_on()


@pytest.mark.full
@needs(Can.SERVER)
def test_frozen_server_does_not_keep_from_closing(
    broker_kind: Kind, server: Any, unique: str
) -> None:
    connection = Connection(server.url, transport_options=options_of(broker_kind))
    connection.default_channel.queue_declare(f"{unique}-own", exclusive=True)
    consumer = greenconn.spawn_consumer(unique, print, connection=connection)
    assert consumer.wait_ready(SOON)
    server.pause()
    try:
        with gevent.Timeout(SOON):
            connection.close()
            consumer.join()
    finally:
        server.resume()


# -- cut connections


def skip_where_relays_cut_nothing(kind: Kind, long: bool) -> None:
    """Skip a test that cuts connections by a relay."""
    if kind.title == "CouchDB" and not long:
        pytest.skip("pouchdb-server 4.2 may fall over a request that is cut: with --long")
    if kind.title == "Redis Cluster":
        pytest.skip("its nodes name addresses behind a relay; it has a test of its own")


@needs(Can.SERVER)
@pytest.mark.sampled(2)
def test_cuts_anywhere_lose_nothing(
    broker_kind: Kind, server: Any, relay_to: RelayFactory, unique: str, long: bool
) -> None:
    """The relays end connections after some bytes, so also amid a request or a reply."""
    skip_where_relays_cut_nothing(broker_kind, long)
    relays = relay_to(server.url), relay_to(server.url)
    names = [unique, f"{unique}-one-at-a-time"]
    senders = 10 if broker_kind.is_slow else 200 if long else 30
    urls = relays[0].url, relays[1].url
    with Traffic(broker_kind, server, names, senders, urls) as traffic:
        traffic.goes_on()
        for number in range(100 if long else 4 if broker_kind.is_slow else 8):
            gevent.sleep(random.uniform(0.02, 0.2))
            # Each of both ends, and of both directions.
            relays[number % 2].cut_after(random.randrange(3000), is_back=number % 4 > 1)
        traffic.goes_on()


@pytest.mark.full
@needs(Can.SERVER)
def test_large_replies_are_cut_in_the_middle(
    broker_kind: Kind, server: Any, relay_to: RelayFactory, unique: str, long: bool
) -> None:
    skip_where_relays_cut_nothing(broker_kind, long)
    relay = relay_to(server.url)
    options = options_of(broker_kind)
    got: set[str] = set()
    bodies = {letter * 60_000 for letter in "abc"}
    with (
        Connection(relay.url, transport_options=options) as connection,
        Connection(server.url, transport_options=options) as sending,
    ):
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: got.add(body), connection=connection
        )
        assert consumer.wait_ready(SOON)
        # The first reply with one of these bodies ends amid it.
        relay.back_budget = 30_000
        for body in sorted(bodies):
            greenconn.publish(unique, body, connection=sending, timeout=LATE)
        until(lambda: relay.back_budget == 0, LATE)
        assert not got
        relay.back_budget = None
        relay.cut()
        until(lambda: got == bodies, LATE)
        assert consumer.stop(SOON)


# -- other processes


@pytest.mark.full
@pytest.mark.programs
@needs(Can.PROCESSES)
def test_the_living_keep_what_they_hold_and_that_of_the_killed_comes_back(
    broker_kind: Kind, kind_url: str, programs: Callable[..., Running], unique: str
) -> None:
    options = options_of(broker_kind)
    slow_queue = f"{unique}-slow"
    with Connection(kind_url, transport_options=options) as connection:
        for body in range(2 * HELD):
            greenconn.publish(unique, body, connection=connection, declare=True)
        arguments = (kind_url, json.dumps(options), unique, str(HELD), "1000")
        holders = [programs(HOLDER, *arguments) for _ in range(2)]
        held = [{int(each.line()) for _ in range(HELD)} for each in holders]
        assert set.union(*held) == set(range(2 * HELD))
        got: dict[int, tuple[bool, int]] = {}
        slow: Counter[int] = Counter()

        def handle(body: int, message: Any) -> None:
            got[body] = (message.delivery_info["redelivered"], message.delivery_count)

        def handle_slowly(body: int, message: Any) -> None:
            slow[body] += 1
            gevent.sleep(1.5 * LEASE)

        consumers = [
            greenconn.spawn_consumer(unique, handle, connection=connection),
            greenconn.spawn_consumer(
                slow_queue, handle_slowly, connection=connection, concurrency=3, prefetch_count=3
            ),
        ]
        for body in range(3):
            greenconn.publish(slow_queue, body, connection=connection)
        # Longer than the lease, which all processes renew meanwhile.
        until(lambda: consumers[1].stats()["handled"] == 3, LATE)
        for number, holder in enumerate(holders):
            assert got.keys() == set().union(*held[:number])
            holder.signal(signal.SIGKILL)
            until(lambda number=number: got.keys() >= held[number], LATE)  # type: ignore[misc]
        assert set(got.values()) == {(True, 1)}
        assert all(each.stop(SOON) for each in consumers)
        assert slow == dict.fromkeys(range(3), 1)
        for name in (unique, slow_queue):
            until(lambda name=name: not rest(connection, broker_kind, name), LATE)  # type: ignore[misc]
            connection.default_channel.queue_delete(name)


@pytest.mark.full
@pytest.mark.programs
@needs(Can.PROCESSES)
def test_who_was_suspended_beyond_his_lease_changes_nothing(
    broker_kind: Kind, kind_url: str, programs: Callable[..., Running], unique: str
) -> None:
    """Its acks come too late for what others have had, and it takes part in what comes next."""
    if broker_kind.title == "beanstalk":
        pytest.skip("beanstalkd 1.12 misses the end of a lease on many a quiet connection")
    options = options_of(broker_kind)
    with Connection(kind_url, transport_options=options) as connection:
        for body in range(HELD):
            greenconn.publish(unique, body, connection=connection, declare=True)
        holder = programs(HOLDER, kind_url, json.dumps(options), unique, str(HELD), "2.5")
        for _ in range(HELD):
            holder.line()
        holder.suspend(kind_url)
        got: Counter[int] = Counter()
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: got.update([body]), connection=connection
        )
        until(lambda: len(got) == HELD, LATE)
        holder.signal(signal.SIGCONT)
        reader = gevent.spawn(collect, holder, got)
        for body in range(HELD, 3 * HELD):
            greenconn.publish(unique, body, connection=connection)
        until(lambda: len(got) == 3 * HELD, LATE)
        until(lambda: not rest(connection, broker_kind, unique), LATE)
        assert consumer.stop(SOON)
        holder.signal(signal.SIGKILL)
        reader.get(timeout=SOON)
        connection.default_channel.queue_delete(unique)
    assert got == dict.fromkeys(range(3 * HELD), 1)


@pytest.mark.full
@pytest.mark.programs
@needs(Can.PROCESSES)
def test_claimers_of_several_processes_get_nothing_twice(
    broker_kind: Kind, kind_url: str, programs: Callable[..., Running], unique: str, long: bool
) -> None:
    number = 2000 if long else 100
    options = {**broker_kind.options, "lease": LATE}
    claimers = [programs(CLAIMERS, kind_url, json.dumps(options), unique) for _ in range(2)]
    for each in claimers:
        assert each.line() == "ready"
    with Connection(kind_url, transport_options=options) as connection:
        greenconn.publish_many(unique, range(number), connection=connection, declare=True)
        got: Counter[int] = Counter()
        readers = [gevent.spawn(collect, each, got) for each in claimers]
        until(lambda: len(got) == number, LATE)
        until(lambda: not rest(connection, broker_kind, unique), LATE)
        for each in claimers:
            each.signal(signal.SIGKILL)
        gevent.joinall(readers, raise_error=True)
        connection.default_channel.queue_delete(unique)
    assert got == dict.fromkeys(range(number), 1)


@pytest.mark.full
def test_child_of_a_fork_connects_by_itself(broker_kind: Kind, kind_url: str, unique: str) -> None:
    """The child says nothing over the parent's connection, and both go on with one of their own."""
    got: Counter[str] = Counter()
    has_got = Event()

    def handle(body: str, message: Any) -> None:
        got[body] += 1
        has_got.set()

    exchange = Exchange(f"{unique}-x", "fanout")
    options = {**broker_kind.options, "lease": LATE}
    with Connection(kind_url, transport_options=options) as connection:
        consumer = greenconn.spawn_consumer(
            [Queue(unique), Queue(f"{unique}-fan", exchange)], handle, connection=connection
        )
        assert consumer.wait_ready(SOON)
        greenconn.publish(unique, "before", connection=connection)
        assert has_got.wait(SOON)
        generation = connection.session.generation

        def in_child() -> bool:
            gevent.reinit()  # as every fork that gevent knows of does it
            with gevent.Timeout(SOON):
                with Connection(kind_url, transport_options=options) as own:
                    greenconn.publish(unique, "from the child", connection=own, timeout=SOON)
                greenconn.publish(unique, "over the parent's", connection=connection, timeout=SOON)
            return True

        assert holds_in_child(in_child)
        greenconn.publish(unique, "after", connection=connection)
        connection.Producer().publish("to all", exchange=exchange)
        expected = {"before", "from the child", "over the parent's", "after", "to all"}
        until(lambda: got.keys() == expected, LATE)
        assert connection.session.generation == generation
        assert consumer.stop(SOON)
        assert got == dict.fromkeys(expected, 1)
        for name in (unique, f"{unique}-fan"):
            connection.default_channel.queue_delete(name)
        connection.default_channel.exchange_delete(exchange.name)
