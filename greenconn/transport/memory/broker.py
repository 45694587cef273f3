"""The broker: one virtual host's exchanges and queues, and the messages in them.

Everything happens in one hub and at once: routing, delivering, expiring and dead-lettering never
switch greenlets, so a publish is there as a whole or not at all.  Only :meth:`Broker.yield_if_due`,
which comes before a publish, gives other greenlets a turn.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

from gevent import get_hub

from greenconn.broker.dead_letters import (
    carbon_copies,
    dead_letter,
    is_cycle,
    visible_headers,
)
from greenconn.broker.envelope import Envelope, lifetime_of
from greenconn.broker.errors import Method, no_exchange
from greenconn.broker.exchanges import PREDECLARED, BrokerState
from greenconn.broker.queues import Declaration
from greenconn.clocks import CLOCK
from greenconn.exceptions import ConnectionForced, RecoverableConnectionError
from greenconn.green.hub import HubAffinity, forget_at_fork, yield_to_hub
from greenconn.transport.memory.queue import Entry, Queue

if TYPE_CHECKING:
    from greenconn.broker.link import BrokerLink


class Clock(Protocol):
    """A clock with alarms.  (Tests set it themselves.)"""

    def now(self) -> float:
        """Return the time in seconds, which never goes back."""
        ...

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* in *delay* seconds; return what stops that."""
        ...


class HubClock:
    """The monotonic clock, and timers of one hub."""

    def __init__(self) -> None:
        self._hub = get_hub()

    def now(self) -> float:
        """Return the seconds of the monotonic clock."""
        return monotonic()

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* in the hub; it must not switch."""
        timer = self._hub.loop.timer(delay)
        timer.start(function, update=True)
        return timer.close


class Timer:
    """Calls *function* at a time that can be changed.  Holds a timer only while it is set."""

    def __init__(self, clock: Clock, function: Callable[[], Any]) -> None:
        self._clock = clock
        self._function = function
        self._stop: Callable[[], Any] | None = None
        #: When it calls, by its clock; None while it is not set.
        self.at: float | None = None

    def set(self, at: float) -> None:
        """Call at *at* instead of whenever it was set to."""
        self.stop()
        self.at = at
        self._stop = self._clock.call_later(max(at - self._clock.now(), 0.0), self._on_time)

    def stop(self) -> None:
        """Call no more, until it is set again."""
        self.at = None
        if self._stop is not None:
            stop, self._stop = self._stop, None
            stop()

    def _on_time(self) -> None:
        at = self.at
        if at is not None and at > self._clock.now():
            self.set(at)  # A timer may be early by the loop's resolution.
            return
        self.stop()
        self._function()


logger = logging.getLogger("greenconn.transport.memory")

#: Publishes between two looks at the clock.
STREAK = 64


class Outcome(Enum):
    """The outcome of a published message."""

    ROUTED = "routed"
    UNROUTED = "it reached no queue"
    REFUSED = "a queue refused it"


#: Returned for nearly each message: looking up a member of an Enum has a cost.
ROUTED: Final = Outcome.ROUTED


class Broker:
    """One virtual host.

    It belongs to the hub on which it was made: use from another thread raises ``WrongHub``.

    Arguments:
        virtual_host: its name.
        clock: what expiry goes by.
    """

    def __init__(self, virtual_host: str = "/", clock: Clock | None = None) -> None:
        self.virtual_host = virtual_host
        self.clock: Clock = HubClock() if clock is None else clock
        self.hub_affinity = HubAffinity()
        self.pid = os.getpid()
        self.state = BrokerState()
        self.queues: dict[str, Queue] = {}
        #: Numbers for deliveries: none is used twice.
        self.tags: Iterator[int] = count(1)
        #: Links that are open.
        #: In the order of their opening.  Not kept alive: one that its program drops closes.
        self.links: WeakKeyDictionary[BrokerLink, None] = WeakKeyDictionary()
        #: What queues have given up and is not sent yet, and why.
        self._dead: deque[tuple[Entry, str]] = deque()
        self._is_sending_dead = False
        self._published = 0
        self._turned_at = monotonic()
        for name, kind in PREDECLARED.items():
            self.state.declare(name, kind, durable=True)
        forget_at_fork(self)

    def __repr__(self) -> str:
        return f"<memory broker {self.virtual_host!r}: {len(self.queues)} queues>"

    @property
    def is_here(self) -> bool:
        """Whether it belongs to the hub of the caller."""
        return get_hub() is self.hub_affinity.hub

    # -- time

    def now(self) -> float:
        """Return the broker's clock, in seconds."""
        return self.clock.now()

    def timer(self, function: Any) -> Timer:
        """Return a timer on the broker's clock."""
        return Timer(self.clock, function)

    def yield_if_due(self) -> None:
        """Count a publish, and let others run when publishing has gone on for 5 ms.  May switch."""
        self._published += 1
        if self._published >= STREAK:
            self._published = 0
            if monotonic() - self._turned_at > CLOCK.pace:
                yield_to_hub()
                self._turned_at = monotonic()

    # -- queues

    def add_queue(self, name: str, declared: Declaration) -> Queue:
        """Make a queue, which must not exist yet."""
        queue = self.queues[name] = Queue(self, name, declared)
        return queue

    def delete_queue(self, name: str) -> int:
        """Delete a queue, its bindings and its consumers; return how many messages waited."""
        queue = self.queues.pop(name, None)
        if queue is None:
            return 0
        count = len(queue)
        self.state.queue_bindings_delete(name)
        for consumer in queue.close():
            consumer.channel.cancelled_by_broker(consumer)
        return count

    def unused(self, queue: Queue) -> None:
        """Delete a queue that expired without use or lost its last consumer (auto-delete)."""
        if not queue.is_deleted:
            self.delete_queue(queue.name)

    # -- messages

    def publish(
        self, envelope: Envelope, exchange: str, routing_key: str, delay: float = 0.0
    ) -> Outcome:
        """Put a message into the queues that it is routed to.

        Arguments:
            delay: seconds until it comes into them.

        Raises:
            NotFound: there is no such exchange.
            PreconditionFailed: its ``expiration`` is not a number of milliseconds.
        """
        expiration = envelope["properties"].get("expiration")
        ttl = None if expiration is None else lifetime_of(expiration)
        headers = envelope["headers"]
        if not exchange and not (headers and ("CC" in headers or "BCC" in headers)):
            queue = self.queues.get(routing_key)
            if queue is None:
                return Outcome.UNROUTED
            if delay:
                queue.accept_later(delay, envelope, exchange, routing_key, ttl)
                return ROUTED
            is_taken = queue.accept(envelope, exchange, routing_key, ttl)
            return ROUTED if is_taken else Outcome.REFUSED
        queues, envelope = self._routes(envelope, exchange, routing_key)
        outcome = ROUTED if queues else Outcome.UNROUTED
        for queue in queues:
            if delay:
                queue.accept_later(delay, envelope, exchange, routing_key, ttl)
                continue
            if not queue.accept(envelope, exchange, routing_key, ttl):
                outcome = Outcome.REFUSED
        return outcome

    def _routes(
        self, envelope: Envelope, exchange: str, routing_key: str
    ) -> tuple[list[Queue], Envelope]:
        """Return the queues, and the message without the header ``BCC``."""
        headers = envelope["headers"]
        if not headers or ("CC" not in headers and "BCC" not in headers):
            names = self._names(exchange, routing_key, headers)
            return [self.queues[each] for each in names], envelope
        keys = [routing_key, *carbon_copies(headers, "CC", "BCC")]
        found = dict.fromkeys(name for key in keys for name in self._names(exchange, key, headers))
        envelope = {**envelope, "headers": visible_headers(headers)}
        return [self.queues[each] for each in found], envelope

    def _names(
        self, exchange: str, routing_key: str, headers: Mapping[str, Any]
    ) -> tuple[str, ...]:
        if not exchange:
            return (routing_key,) if routing_key in self.queues else ()
        try:
            return self.state.route(exchange, routing_key, headers)
        except KeyError:
            raise no_exchange(exchange, self.virtual_host, Method.BASIC_PUBLISH) from None

    def dead_letter(self, entry: Entry, reason: str) -> None:
        """Send a message that its queue gives up to the queue's dead-letter exchange, if any.

        What that causes is done too when this returns, unless it is part of it: one that makes another
        queue overflow does not nest.
        """
        queue = entry.queue
        if queue.policy.dead_letter_exchange is None or queue.is_deleted:
            return
        self._dead.append((entry, reason))
        if self._is_sending_dead:
            return
        self._is_sending_dead = True
        try:
            while self._dead:
                self._send_dead(*self._dead.popleft())
        finally:
            self._is_sending_dead = False

    def _send_dead(self, entry: Entry, reason: str) -> None:
        queue, envelope = entry.queue, entry.envelope
        target = queue.policy.dead_letter_target(queue.name, None)
        if target is None or (target.exchange and target.exchange not in self.state.exchanges):
            return
        info = {"exchange": entry.exchange, "routing_key": entry.routing_key}
        properties = {**envelope["properties"], "delivery_info": info}
        try:
            letter = dead_letter(
                {**envelope, "properties": properties}, queue.name, *target, reason
            )
        except Exception as exc:  # its headers may be of any form
            logger.warning(
                "memory broker: a dead letter of queue %r is dropped: %s",
                queue.name,
                exc,
                extra={"queue": queue.name},
            )
            return
        key = letter["properties"].pop("delivery_info")["routing_key"]
        deaths = letter["headers"]["x-death"]
        queues, letter = self._routes(letter, target.exchange, key)
        for each in queues:
            if reason != "rejected" and is_cycle(each.name, deaths):
                continue
            if not each.accept(letter, target.exchange, key):
                # As RabbitMQ does, whose dead letters are published without a confirm.
                logger.warning(
                    "memory broker: a dead letter is dropped: queue %r is full and rejects it",
                    each.name,
                    extra={"queue": each.name},
                )

    # -- links

    def left(self, link: BrokerLink) -> None:
        """Delete the exclusive queues of a link that has ended."""
        self.links.pop(link, None)
        own = [name for name, each in self.queues.items() if each.declared.owner == link.owner]
        for name in own:
            self.delete_queue(name)

    def forget(self) -> None:
        """Forget all content and links in the child of a fork, as they are the parent's."""
        for queue in self.queues.values():
            queue.close()
        self.queues.clear()
        exc = RecoverableConnectionError("the connection was opened before a fork")
        for link in list(self.links):
            link.forget(exc)
        self.links.clear()
        self.state.clear()

    def restart(self) -> None:
        """Do what a restart of a broker does: all links are lost, and what is not durable."""
        for link in list(self.links):
            link.end(ConnectionForced("CONNECTION_FORCED - broker restarted"))
        for queue in list(self.queues.values()):
            if queue.declared.durable:
                queue.keep_persistent()
            else:
                self.delete_queue(queue.name)
        for exchange in list(self.state.exchanges.values()):
            if not exchange.durable:
                self.state.delete(exchange.name)

    def clear(self) -> None:
        """Close all links and forget everything."""
        # The queues first: what the first link gives back must not go to the next one.
        for queue in self.queues.values():
            queue.close()
        self.queues.clear()
        for link in list(self.links):
            link.end(RecoverableConnectionError("the memory broker was reset"), closed=True)
        self.state.clear()


class Queues(Mapping[str, Queue]):
    """The queues of *broker* by their names, for the tests of programs."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def __getitem__(self, name: str) -> Queue:
        return self._broker.queues[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._broker.queues)

    def __len__(self) -> int:
        return len(self._broker.queues)

    def clear(self) -> None:
        """Delete all queues, their bindings and their consumers."""
        for name in list(self):
            self._broker.delete_queue(name)
