"""What the scripted AMQP peer knows: exchanges, queues, and who consumes from them.

As little of a broker as the calls under test need, and all of it to be looked at: after a call was
interrupted, a consumer, a channel or an unacked message that nobody owns shows here.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

NOT_FOUND, REFUSED, LOCKED, DIFFERENT = 404, 403, 405, 406

#: The exchanges that are there without being declared.
PREDECLARED = {"": "direct", "amq.direct": "direct", "amq.topic": "topic", "amq.fanout": "fanout"}


class Refused(Exception):
    """What the channel is closed for.

    Arguments:
        code: of AMQP 0-9-1, 1.2.
        text: as RabbitMQ says it.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


class Holder(Protocol):
    """A channel, to the queues that deliver to it."""

    def has_room(self) -> bool:
        """Whether one more message may be delivered that needs an ack."""
        ...

    def deliver(self, consumer: Consumer, message: Message) -> None:
        """Send a message to a consumer."""
        ...

    def cancelled(self, consumer: Consumer) -> None:
        """The consumer's queue was deleted."""
        ...


@dataclass(eq=False)
class Message:
    """A message as it came: its header frame and its body."""

    exchange: str
    key: str
    header: bytes
    body: bytes
    redelivered: bool = False


@dataclass(eq=False)
class Consumer:
    """A consumer of a queue."""

    tag: str
    channel: Holder
    no_ack: bool


@dataclass(eq=False)
class Queue:
    """A queue; ``owner`` is the connection that it is exclusive to."""

    name: str
    owner: object = None
    auto_delete: bool = False
    messages: deque[Message] = field(default_factory=deque)
    consumers: deque[Consumer] = field(default_factory=deque)

    def push(self) -> None:
        """Deliver what can be delivered, to the consumers in turn."""
        idle = 0
        while self.messages and idle < len(self.consumers):
            consumer = self.consumers[0]
            self.consumers.rotate(-1)
            if consumer.no_ack or consumer.channel.has_room():
                idle = 0
                consumer.channel.deliver(consumer, self.messages.popleft())
            else:
                idle += 1


class Model:
    """One virtual host."""

    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}
        self.exchanges: dict[str, str] = dict(PREDECLARED)
        #: ``(exchange, key, kind of what is bound, its name)``
        self.bindings: set[tuple[str, str, str, str]] = set()
        #: Who waits for direct replies: a channel by the key of its replies.
        self.repliers: dict[str, Callable[[Message], None]] = {}
        self._numbers = iter(range(1, 1 << 62))

    def number(self) -> int:
        """One that was not given before."""
        return next(self._numbers)

    # -- queues

    def queue(self, name: str, connection: object) -> Queue:
        """An existing queue."""
        found = self.queues.get(name)
        if found is None:
            raise Refused(NOT_FOUND, f"NOT_FOUND - no queue '{name}' in vhost '/'")
        if found.owner not in (None, connection):
            raise Refused(
                LOCKED, f"RESOURCE_LOCKED - cannot obtain access to locked queue '{name}'"
            )
        return found

    def declare(self, name: str, connection: object, exclusive: bool, auto_delete: bool) -> Queue:
        """Make a queue, or check that it is the same."""
        name = name or f"amq.gen-{self.number()}"
        if name not in self.queues:
            self.queues[name] = Queue(name, connection if exclusive else None, auto_delete)
        found = self.queue(name, connection)
        if found.auto_delete != auto_delete:
            text = f"inequivalent arg 'auto_delete' for queue '{name}' in vhost '/'"
            raise Refused(DIFFERENT, f"PRECONDITION_FAILED - {text}")
        return found

    def delete(self, queue: Queue) -> int:
        """Delete a queue with its bindings and consumers; return how many messages waited."""
        self.queues.pop(queue.name, None)
        self.bindings = {each for each in self.bindings if each[2:] != ("queue", queue.name)}
        for consumer in queue.consumers:
            consumer.channel.cancelled(consumer)
        queue.consumers.clear()
        return len(queue.messages)

    def leave(self, queue: Queue, consumer: Consumer) -> None:
        """A consumer leaves; a queue that deletes itself goes with the last one."""
        queue.consumers.remove(consumer)
        if queue.auto_delete and not queue.consumers and queue.name in self.queues:
            self.delete(queue)

    # -- exchanges

    def declare_exchange(self, name: str, kind: str, passive: bool) -> None:
        """Make an exchange, or check that it is the same."""
        if passive or name in self.exchanges:
            found = self.exchange(name)
            if not passive and found != kind:
                text = f"inequivalent arg 'type' for exchange '{name}' in vhost '/'"
                raise Refused(DIFFERENT, f"PRECONDITION_FAILED - {text}")
        self.exchanges.setdefault(name, kind)

    def exchange(self, name: str) -> str:
        """The type of an existing exchange."""
        if name not in self.exchanges:
            raise Refused(NOT_FOUND, f"NOT_FOUND - no exchange '{name}' in vhost '/'")
        return self.exchanges[name]

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange with its bindings."""
        if name in PREDECLARED:
            raise Refused(REFUSED, f"ACCESS_REFUSED - exchange name '{name}' is reserved")
        self.exchanges.pop(name, None)
        self.bindings = {
            each for each in self.bindings if each[0] != name and each[2:] != ("exchange", name)
        }

    def publish(self, message: Message) -> bool:
        """Put a message where it belongs; whether it belongs anywhere."""
        self.exchange(message.exchange)
        replier = None if message.exchange else self.repliers.get(message.key)
        if replier is not None:
            replier(message)
            return True
        names = set(self._routed(message.exchange, message.key))
        for name in names:
            queue = self.queues[name]
            queue.messages.append(Message(*_parts(message)))
            queue.push()
        return bool(names)

    def _routed(self, exchange: str, key: str) -> Iterator[str]:
        if not exchange:
            if key in self.queues:
                yield key
            return
        kind = self.exchanges[exchange]
        for source, pattern, what, name in sorted(self.bindings):
            if source == exchange and _matches(kind, pattern, key):
                if what == "queue":
                    yield name
                else:
                    yield from self._routed(name, key)


def _parts(message: Message) -> tuple[Any, ...]:
    return (message.exchange, message.key, message.header, message.body)


def _matches(kind: str, pattern: str, key: str) -> bool:
    if kind == "fanout":
        return True
    if kind == "topic":
        words = re.escape(pattern).replace(r"\*", r"[^.]*").replace(r"\#", ".*")
        return re.fullmatch(words, key) is not None
    return pattern == key
