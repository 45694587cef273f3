"""The broker: one virtual host's exchanges and queues, and the messages in them.

Everything happens in one hub and at once: routing, delivering, expiring and dead-lettering never
switch greenlets, so a publish is there as a whole or not at all.  Only :meth:`Broker.breathe`, which
comes before a publish, gives other greenlets a turn.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from gevent import get_hub

from greenconn.broker.dead_letters import carbon_copies
from greenconn.exceptions import ConnectionForced, RecoverableConnectionError
from greenconn.green import fork
from greenconn.green.hub import Home, turn
from greenconn.transport.memory.alarm import Alarm, Clock, HubClock
from greenconn.transport.memory.dead_letters import DeadLetters
from greenconn.transport.memory.queue import Queue
from greenconn.transport.memory.store import Entry
from greenconn.transport.refusal import (
    Method,
    check_equivalent,
    invalid_argument,
    locked,
    no_exchange,
    no_queue,
    reserved_name,
)
from greenconn.transport.virtual.entities import PREDECLARED
from greenconn.transport.virtual.link import VirtualLink
from greenconn.transport.virtual.names import generated_name
from greenconn.transport.virtual.policy import COMPARED_ARGUMENTS
from greenconn.transport.virtual.publishing import Envelope, Outcome
from greenconn.transport.virtual.state import BrokerState

__all__ = ["Broker", "Queues"]

logger = logging.getLogger("greenconn.transport.memory")

#: Publishes between two looks at the clock, and seconds of publishing before the hub gets a turn.
STREAK = 64
PACE = 0.005


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
        self.home = Home()
        self.pid = os.getpid()
        self.state = BrokerState()
        self.queues: dict[str, Queue] = {}
        #: Links that are open.
        #: In the order of their opening.  Not kept alive: one that its program drops closes.
        self.links: WeakKeyDictionary[VirtualLink, None] = WeakKeyDictionary()
        self._dead_letters = DeadLetters(self._post)
        self._published = 0
        self._turned_at = monotonic()
        for name, kind in PREDECLARED.items():
            self.state.declare(name, kind, durable=True)
        fork.register(self)

    def __repr__(self) -> str:
        return f"<memory broker {self.virtual_host!r}: {len(self.queues)} queues>"

    @property
    def is_here(self) -> bool:
        """Whether it belongs to the hub of the caller."""
        return get_hub() is self.home.hub

    # -- time

    def now(self) -> float:
        """The broker's clock, in seconds."""
        return self.clock.now()

    def alarm(self, function: Any) -> Alarm:
        """An alarm on the broker's clock."""
        return Alarm(self.clock, function)

    def breathe(self) -> None:
        """Count a publish, and let others run when publishing has gone on for 5 ms.  May switch."""
        self._published += 1
        if self._published >= STREAK:
            self._published = 0
            if monotonic() - self._turned_at > PACE:
                turn()
                self._turned_at = monotonic()

    # -- queues

    def declare_queue(
        self,
        name: str,
        link: VirtualLink,
        *,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Queue:
        """Make a queue, or check that the existing one is the same.

        Raises:
            PreconditionFailed: it differs from the existing one, or an argument cannot be.
            ResourceLocked: it is exclusive to another link, or only one of the two is exclusive.
            AccessRefused: the name is reserved.
        """
        owner = link if exclusive else None
        queue = self.queues.get(name)
        if queue is None:
            return self._new_queue(name, bool(durable), bool(auto_delete), owner, arguments)
        if queue.owner is not owner:
            raise locked(name, self.virtual_host, Method.QUEUE_DECLARE)
        check_equivalent(
            "queue",
            name,
            self.virtual_host,
            Method.QUEUE_DECLARE,
            fields={
                "durable": (bool(durable), queue.durable),
                "auto_delete": (bool(auto_delete), queue.auto_delete),
            },
            arguments=(arguments or {}, queue.arguments),
            compared=COMPARED_ARGUMENTS,
        )
        queue.touch()
        return queue

    def _new_queue(
        self,
        name: str,
        durable: bool,
        auto_delete: bool,
        owner: VirtualLink | None,
        arguments: Mapping[str, Any] | None,
    ) -> Queue:
        method = Method.QUEUE_DECLARE
        if name.startswith("amq."):
            raise reserved_name("queue", name, method)
        name = name or generated_name("amq.gen-")
        try:
            queue = Queue(
                self,
                name,
                durable=durable,
                auto_delete=auto_delete,
                owner=owner,
                arguments=arguments,
            )
        except ValueError as exc:
            text = f"{exc} (queue '{name}' in vhost '{self.virtual_host}')"
            raise invalid_argument(text, method) from exc
        self.queues[name] = queue
        return queue

    def queue(self, name: str, link: VirtualLink, method: Method) -> Queue:
        """Return an existing queue.

        Raises:
            NotFound: there is none.
            ResourceLocked: it is exclusive to another link.
        """
        queue = self.queues.get(name)
        if queue is None:
            raise no_queue(name, self.virtual_host, method)
        if queue.owner is not None and queue.owner is not link:
            raise locked(name, self.virtual_host, method)
        return queue

    def delete_queue(self, queue: Queue) -> int:
        """Delete a queue, its bindings and its consumers; return how many messages waited."""
        if self.queues.pop(queue.name, None) is None:
            return 0
        count = len(queue)
        self.state.queue_bindings_delete(queue.name)
        for consumer in queue.close():
            consumer.channel.cancelled_by_broker(consumer)
        return count

    def unused(self, queue: Queue) -> None:
        """A queue's time without use has passed, or the last consumer of an auto-delete one left."""
        self.delete_queue(queue)

    # -- messages

    def publish(self, envelope: Envelope, exchange: str, routing_key: str) -> Outcome:
        """Put a message into the queues that it is routed to.

        Raises:
            NotFound: there is no such exchange.
            PreconditionFailed: its ``expiration`` is not a number of milliseconds.
        """
        expiration = envelope["properties"].get("expiration")
        ttl = None if expiration is None else _seconds(expiration)
        if not exchange and "CC" not in envelope["headers"] and "BCC" not in envelope["headers"]:
            queue = self.queues.get(routing_key)
            if queue is None:
                return Outcome.UNROUTED
            is_taken = queue.accept(envelope, exchange, routing_key, ttl)
            return Outcome.ROUTED if is_taken else Outcome.REFUSED
        queues, envelope = self._routes(envelope, exchange, routing_key)
        outcome = Outcome.ROUTED if queues else Outcome.UNROUTED
        for queue in queues:
            if not queue.accept(envelope, exchange, routing_key, ttl):
                outcome = Outcome.REFUSED
        return outcome

    def _routes(
        self, envelope: Envelope, exchange: str, routing_key: str
    ) -> tuple[list[Queue], Envelope]:
        """Return the queues, and the message without the header that nobody may see."""
        headers = envelope["headers"]
        if not headers or ("CC" not in headers and "BCC" not in headers):
            names = self._names(exchange, routing_key, headers)
            return [self.queues[each] for each in names], envelope
        keys = [routing_key, *carbon_copies(headers, "CC", "BCC")]
        found = dict.fromkeys(name for key in keys for name in self._names(exchange, key, headers))
        if "BCC" in headers:
            shown = {name: value for name, value in headers.items() if name != "BCC"}
            envelope = {**envelope, "headers": shown}
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
        """Send a message that its queue gives up to the queue's dead-letter exchange, if any."""
        self._dead_letters.add(entry, reason)

    def _post(
        self, letter: Envelope, exchange: str, key: str, may_have: Callable[[Queue], bool]
    ) -> None:
        """Put a dead letter into the queues that it is routed to and that may have it."""
        if exchange and exchange not in self.state.exchanges:
            return
        queues, letter = self._routes(letter, exchange, key)
        for queue in queues:
            if may_have(queue) and not queue.accept(letter, exchange, key):
                # As RabbitMQ does, whose dead letters are published without a confirm.
                logger.warning(
                    "memory broker: a dead letter is dropped: queue %r is full and refuses it",
                    queue.name,
                )

    # -- links

    def left(self, link: VirtualLink) -> None:
        """A link has ended: its exclusive queues go with it."""
        self.links.pop(link, None)
        for queue in [each for each in self.queues.values() if each.owner is link]:
            self.delete_queue(queue)

    def forget(self) -> None:
        """In the child of a fork: what is in it is the parent's, and so are the links to it."""
        for queue in self.queues.values():
            queue.close()
        self.queues.clear()
        exc = RecoverableConnectionError("the connection was the parent process's")
        for link in list(self.links):
            link.forget(exc)
        self.links.clear()
        self.state.clear()

    def restart(self) -> None:
        """Do what a restart of a broker does: all links are lost, and what is not durable."""
        for link in list(self.links):
            link.end(ConnectionForced("CONNECTION_FORCED - broker restarted", (0, 0)))
        for queue in list(self.queues.values()):
            if queue.durable:
                queue.keep_persistent()
            else:
                self.delete_queue(queue)
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
        for queue in list(self.values()):
            self._broker.delete_queue(queue)


def _seconds(expiration: Any) -> float:
    """Read the ``expiration`` property, which is milliseconds as text."""
    try:
        milliseconds = int(expiration)
    except (TypeError, ValueError):
        milliseconds = -1
    if milliseconds < 0:
        raise invalid_argument(f"invalid expiration {expiration!r}", Method.BASIC_PUBLISH)
    return milliseconds / 1000
