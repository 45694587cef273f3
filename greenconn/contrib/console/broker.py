"""The broker as the console sees it: figures that all viewers share, messages that stay in their queue.

The console has connections of its own.  Each question is asked in a greenlet of its own and has a
deadline: a broker that does not answer delays a page by that, and no handler.

Also the handlers, consumers and schedules of this process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice, takewhile
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import gevent
from gevent import getcurrent
from gevent.event import Event
from greenlet import greenlet

from greenconn.connection import Connection
from greenconn.contrib.console.security import masked_text
from greenconn.debug import places_of
from greenconn.defaults import consuming_connection, publishing_connection
from greenconn.entity.queue import DEAD
from greenconn.exceptions import OperationalError, error_summary, error_text
from greenconn.green.supervisor import spawn
from greenconn.listeners import DeliverEvent, HandledEvent, Listener
from greenconn.service.app import App
from greenconn.service.periodic import periodic_calls
from greenconn.service.records import Monitor, QueueReader, QueueTrend
from greenconn.worker.consumer import ConsumerGreenlet, running_consumers
from greenconn.worker.failures import count_of, look

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.message import Message
    from greenconn.service.periodic import PeriodicCalls


T = TypeVar("T")

logger = logging.getLogger("greenconn.console")

#: Seconds between two looks at the queues while a page is open.
INTERVAL: Final = 2.0
#: A look takes at most one part in so many of the time.
SHARE: Final = 75
#: Seconds after the last request until the console stops looking at the broker.
IDLE: Final = 30.0
#: Seconds for which messages that were looked at are shown again.
KEPT: Final = 3.0
#: Seconds that a page waits for the broker.
PATIENCE: Final = 2.0
#: Seconds that a page waits for what is only beside its matter.
SAMPLING: Final = 0.2
#: Looks at messages that are kept.
MOST_KEPT: Final = 100
#: RabbitMQ's version from which a message that is put back does not count as delivered.
UNCOUNTED: Final = (4, 3)


class BrokerSilent(OperationalError):
    """The broker has not answered in time."""


@dataclass(frozen=True)
class Snapshot:
    """The queues at one time."""

    number: int = 0
    """It grows with each look."""

    at: float = 0.0
    """Seconds since 1970."""

    trends: Sequence[QueueTrend] = ()
    error: str | None = None
    """Why the last look has failed; the figures are those of the look before."""

    by_name: dict[str, QueueTrend] = field(default_factory=dict)


@dataclass(frozen=True)
class Peek:
    """The oldest messages of a queue, which are there still."""

    at: float
    """The time of the look on the monotonic clock."""

    waiting: int
    messages: Sequence[tuple[str, Message]]
    """Each with its :func:`fingerprint`."""


class BrokerView:
    """One broker, for all pages of a console in one process.

    Arguments:
        source: the application, connection or URL whose broker is meant; None: the default one.
        queues: names of queues, for brokers that cannot list theirs.

    Attributes:
        snapshot: the queues as of the last look.
        is_closed: it is not used any more.
    """

    def __init__(self, source: App | Connection | str | None, queues: Iterable[str]) -> None:
        self._source = source
        self._named = tuple(queues)
        self._connection: Connection | None = None
        self._reader: QueueReader | None = None
        self._monitor = Monitor()
        self._asked_at = 0.0
        self._watching: gevent.Greenlet[..., Any] | None = None
        #: RabbitMQ's version.
        self._version: tuple[int, ...] = (0,)
        #: What is asked now, by what is asked.
        self._asking: dict[object, gevent.Greenlet[..., Any]] = {}
        self._peeks: dict[tuple[str, int], Peek] = {}
        self._consumers: list[tuple[str, str, str, int | None]] = []
        self._consumers_at = 0.0
        #: Set when the queues are to be looked at before it is time.
        self._hurry = Event()
        #: Set, and replaced, with each look.
        self._looked = Event()
        self.snapshot = Snapshot()
        self.is_closed = False

    @property
    def connection(self) -> Connection:
        """The console's own connection, which is opened by its first use."""
        if self._connection is None:
            source = self._source.connection if isinstance(self._source, App) else self._source
            self._connection = consuming_connection(source).clone()
            self._connection.session.purpose = "console"
        return self._connection

    @property
    def publishing(self) -> Connection:
        """The connection over which the console publishes."""
        return publishing_connection(self.connection)

    @property
    def label(self) -> str:
        """The URL of the broker, with the password masked."""
        return str(self.connection.as_uri())

    def close(self) -> None:
        """Close the connections, and look never again.  May switch."""
        self.is_closed = True
        if self._watching is not None:
            self._watching.kill()
        gevent.killall(list(self._asking.values()))
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- questions

    def ask(self, key: object, function: Callable[[Channel], T], patience: float = PATIENCE) -> T:
        """Return what *function* returns, called with a channel of its own.  May switch.

        The same question that is under way already is not asked twice.

        Arguments:
            key: what is asked.
            patience: seconds for the answer.

        Raises:
            BrokerSilent: the broker has not answered in time; the question is given up later.
            Exception: what *function* raises.
        """
        if self.is_closed:
            raise BrokerSilent("this console is closed")
        greenlet = self._asking.get(key)
        if greenlet is None:
            greenlet = self._asking[key] = spawn("console", self._answer, key, function)
        greenlet.join(patience)
        if not greenlet.ready():
            raise BrokerSilent(f"{self.label} has not answered for {patience:g} s")
        answer: Any = greenlet.value
        if not isinstance(answer, tuple):
            raise BrokerSilent(f"the question to {self.label} was given up")
        value, error = answer
        if error is not None:
            raise error
        result: T = value
        return result

    def _answer(self, key: object, function: Callable[[Channel], T]) -> tuple[T | None, Any]:
        try:
            with self.connection.channel() as channel:
                return function(channel), None
        except Exception as exc:
            return None, exc.with_traceback(None)
        finally:
            del self._asking[key]

    # -- queues

    def queues(self) -> Snapshot:
        """Return the queues as of the last look.  May switch, before the first look only."""
        self._asked_at = monotonic()
        if self.is_closed:
            return Snapshot(error="this console is closed")
        if self._watching is None or self._watching.ready():
            self._watching = spawn("console", self._watch)
        if not self.snapshot.number:
            self._looked.wait(PATIENCE)
        if not self.snapshot.number:
            return Snapshot(error=f"{self.label} has not answered for {PATIENCE:g} s")
        return self.snapshot

    def wait_newer(self, number: int, timeout: float) -> Snapshot:
        """Return a snapshot with another number, or the present one after *timeout* s.  May switch."""
        self.queues()
        if self.snapshot.number == number:
            self._looked.wait(timeout)
        return self.snapshot

    def _watch(self) -> None:
        while monotonic() - self._asked_at < IDLE:
            began_at = monotonic()
            before = self.snapshot
            try:
                trends = self._monitor.trends(self._read())
                error = None
            except Exception as exc:
                trends = list(before.trends)
                error = masked_text(error_summary(exc))
            by_name = {each.figures.name: each for each in trends}
            self.snapshot = Snapshot(before.number + 1, time(), trends, error, by_name)
            looked, self._looked = self._looked, Event()
            looked.set()
            self._hurry.clear()
            self._hurry.wait(max(INTERVAL, SHARE * (monotonic() - began_at)))

    def _read(self) -> list[Any]:
        if self._reader is None:
            self._reader = QueueReader(self.connection, (), INTERVAL)
        self._version = getattr(self.connection.connection, "server_version", None) or (0,)
        try:
            return self._reader.read()
        except (ValueError, OperationalError):
            names = self.known_names()
            if not names:
                raise
            return QueueReader(self.connection, names, INTERVAL).read()

    def known_names(self) -> list[str]:
        """Return the queues that the program has named, and those of its consumers in this process."""
        names = {*self._named, *dead_letter_names()}
        for consumer in running_consumers():
            names.update(queue_names(consumer))
        return sorted(names)

    def dead_letter_queues(self) -> list[str]:
        """Return the names of the queues that hold dead letters."""
        known = self.queues().by_name
        named = {each for each in known if each.endswith(DEAD)}
        return sorted(named.union(each for each in dead_letter_names() if each in known))

    def counts_looks(self, queue: str) -> bool:
        """Return whether looking at the messages of a queue counts as a delivery of each."""
        trend = self.snapshot.by_name.get(queue)
        if trend is None or trend.figures.kind != "quorum":
            return False
        return self._version < UNCOUNTED

    # -- messages

    def peek(self, queue: str, count: int, patience: float = PATIENCE) -> Peek:
        """Return the oldest messages of a queue, which stay there.  May switch.

        Raises:
            NotFound: there is no such queue.
            Exception: the broker refuses, or does not answer.
        """
        key = (queue, count)
        if (kept := self.kept_peek(queue, count)) is not None:
            return kept

        def read(channel: Channel) -> Peek:
            waiting = count_of(channel, queue)
            messages = look(channel, queue, count)
            found = [(fingerprint(each), each) for each in messages]
            peek = Peek(monotonic(), max(waiting, len(found)), found)
            while len(self._peeks) >= MOST_KEPT:
                del self._peeks[next(iter(self._peeks))]
            self._peeks[key] = peek
            return peek

        return self.ask(("peek", *key), read, patience)

    def kept_peek(self, queue: str, count: int) -> Peek | None:
        """Return the last look at the messages of a queue, of the last seconds; None: there is none."""
        kept = self._peeks.get((queue, count))
        return kept if kept is not None and monotonic() - kept.at < KEPT else None

    def peek_soon(self, queues: Iterable[str], count: int, patience: float) -> None:
        """Look at the messages of several queues at once, for at most *patience* s.  May switch.

        Queues whose messages count as delivered then are left out.
        """
        asked = [
            spawn("console", self._try_peek, each, count)
            for each in queues
            if not self.counts_looks(each)
        ]
        gevent.joinall(asked, timeout=patience)

    def _try_peek(self, queue: str, count: int) -> None:
        try:
            self.peek(queue, count)
        except Exception as exc:
            logger.debug("queue %r cannot be looked at: %s", queue, error_text(exc))

    def consumers(self) -> list[tuple[str, str, str, int | None]]:
        """Return queue, connection, tag and prefetch of all consumers.  May switch.

        Empty if the broker cannot list them.
        """
        if self._consumers_at and monotonic() - self._consumers_at < KEPT:
            return self._consumers

        def read(channel: Channel) -> list[tuple[str, str, str, int | None]]:
            connection = self.connection
            if connection.transport.driver_type != "amqp":
                return []
            rows = connection.get_manager(timeout=PATIENCE).get_consumers(
                connection.virtual_host or "/"
            )
            return sorted(
                (
                    str(each["queue"]["name"]),
                    str(each.get("channel_details", {}).get("connection_name", "")),
                    str(each.get("consumer_tag", "")),
                    each.get("prefetch_count"),
                )
                for each in rows
            )

        try:
            self._consumers = self.ask("consumers", read, SAMPLING)
            self._consumers_at = monotonic()
        except Exception as exc:
            logger.debug("consumers cannot be listed: %s", error_text(exc))
        return self._consumers

    def forget(self, *queues: str) -> None:
        """Look at queues anew that have changed, and at their messages the next time."""
        self._hurry.set()
        for key in [each for each in self._peeks if each[0] in queues]:
            del self._peeks[key]


def queue_names(consumer: ConsumerGreenlet) -> list[str]:
    """Return the names of the queues of a consumer; a queue without one yet has none."""
    queues = consumer.lifecycle.options.queues
    return [name for each in queues if (name := each if isinstance(each, str) else each.name)]


def dead_letter_names() -> set[str]:
    """Return the names of the queues that get the dead letters of consumers in this process."""
    return {
        each.lifecycle.options.dead_letters_of(queue) or f"{queue}{DEAD}"
        for each in running_consumers()
        for queue in queue_names(each)
    }


def fingerprint(message: Message) -> str:
    """Return a short name of a message by its content: the same as long as it is not changed."""
    body = message.body
    data = (
        body
        if isinstance(body, (bytes, bytearray, memoryview))
        else repr(body).encode("utf-8", "backslashreplace")
    )
    digest = blake2b(data, digest_size=8)
    headers = {
        name: each
        for name, each in message.headers.items()
        if name not in ("x-delivery-count", "redelivered")
    }
    parts = (sorted(headers.items(), key=str), sorted(_kept_properties(message), key=str))
    digest.update(repr(parts).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _kept_properties(message: Message) -> Iterable[tuple[str, Any]]:
    for name in ("message_id", "correlation_id", "timestamp", "priority", "content_type", "type"):
        yield name, message.properties.get(name)


#: Handlers that are shown, and functions of each, the innermost first.
MOST: Final = 500
PLACES: Final = 3
#: Files of the library that call a handler.
_CALLERS: Final = ("greenconn/listeners.py", "worker/handling.py", "worker/dispatch.py")


@dataclass(frozen=True)
class RunningHandler:
    """A handler that runs now."""

    event: DeliverEvent
    greenlet: greenlet
    began_at: float
    """The time on the monotonic clock."""

    @property
    def message(self) -> Message:
        """The message, or the first one of its batch."""
        return self.event.messages[0]

    @property
    def seconds(self) -> float:
        """The seconds for which it has run."""
        return monotonic() - self.began_at

    @property
    def key(self) -> str:
        """A name of it in this process."""
        return f"{id(self.event):x}"

    @property
    def place(self) -> str:
        """The place in the code where it waits."""
        frame = self.greenlet.gr_frame
        if frame is None:
            return "runs now"
        places = places_of(frame)
        own = takewhile(lambda each: not each.startswith(_CALLERS), places)
        return " < ".join(list(own)[:PLACES] or places[:1])


class HandlerWatch(Listener):
    """The handlers that run in this process, by what the library notifies.  Nothing here switches."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[DeliverEvent, greenlet, float]] = {}

    def on_deliver(self, event: DeliverEvent) -> None:
        """Note that a handler begins."""
        self._running[id(event)] = (event, getcurrent(), monotonic())

    def on_handled(self, event: HandledEvent) -> None:
        """Note that a handler has ended."""
        self._running.pop(id(event.delivery), None)

    def running(self) -> list[RunningHandler]:
        """Return the handlers that run, the longest first."""
        # One whose greenlet has ended was killed, and its end was not notified.
        for key in [key for key, (_, runner, _) in self._running.items() if runner.dead]:
            del self._running[key]
        # A schedule holds its token until it is due; the page of schedules shows when.
        waiting = {
            queue
            for each, calls in _schedule_consumers()
            if not calls.is_calling
            for queue in queue_names(each)
        }
        found = (each for each in list(self._running.values()) if each[0].queue not in waiting)
        return [RunningHandler(*each) for each in islice(found, MOST)]

    def interrupt(self, key: str) -> RunningHandler | None:
        """Interrupt the handler with this key, and return it; None: it does not run any more."""
        for each in self.running():
            if each.key == key and any(
                consumer.interrupt(each.message) for consumer in running_consumers()
            ):
                return each
        return None


def consumers_of(queue: str) -> list[ConsumerGreenlet]:
    """Return the consumers of a queue in this process."""
    return [each for each in running_consumers() if queue in queue_names(each)]


def handler_of(consumer: ConsumerGreenlet) -> str:
    """Return the name of the function that a consumer calls."""
    function = consumer.lifecycle.options.handler
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    return f"{module}.{name}" if module and name else type(function).__name__


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule, as far as this process knows it."""

    name: str
    schedule: str
    next_at: float | None
    """Seconds since 1970, as the last one."""

    last_at: float | None
    state: str


def _schedule_consumers() -> Iterator[tuple[ConsumerGreenlet, PeriodicCalls]]:
    for each in running_consumers():
        calls = periodic_calls(each)
        if calls is not None:
            yield each, calls


def schedules(app: App | None) -> Iterator[ScheduleRow]:
    """Yield the schedules of an application, by name."""
    calls = {own.name: own for _, own in _schedule_consumers()}
    declared = {} if app is None else app.schedules
    for name, schedule in sorted(declared.items()):
        own = calls.get(name)
        if own is None:
            state = "not started in this process"
        elif own.is_calling:
            state = "running"
        else:
            state = "leader" if own.is_leader else "another process is the leader"
        last = None if own is None else own.last
        yield ScheduleRow(name, repr(schedule), schedule.following(time()), last, state)
