"""Publishing: one LPUSH for each queue, one PUBLISH for each fan-out channel.

A publish waits for the server's answer, since that is what makes it safe; those of many greenlets
leave in one send and are answered together.  With ``publish_window`` a channel lets some of its
publishes be unanswered, and raises what became of them later.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from gevent import get_hub

from greenconn.abc import DeadlineLike
from greenconn.broker.answers import Answers
from greenconn.broker.port import NoQueue
from greenconn.broker.publisher import ChannelPublisher, CopyOutcomes, PublishingLink
from greenconn.exceptions import ChannelError
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.transport.redis.commands import PING, Commands
from greenconn.transport.redis.envelope import LARGE, Outgoing
from greenconn.transport.redis.moves import clamped
from greenconn.transport.redis.pipeline import ENDLESS, Pipeline
from greenconn.transport.redis.queues import RedisQueues
from greenconn.transport.redis.routes import QueueRoutes
from greenconn.transport.redis.scripts import PUSH
from greenconn.transport.redis.sent import Unasked, Window
from greenconn.transport.redis.sockets import LargeBodies
from greenconn.transport.redis.source import RedisFeed
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.arguments import ArgumentOf
from greenconn.transport.virtual.port import ChannelPort
from greenconn.transport.virtual.publishing import (
    too_large,
    undeliverable,
)
from greenconn.transport.virtual.tags import TagMaker
from greenconn.wire.resp import ErrorReply, bulk, pack

__all__ = ["RedisPublisher", "WindowPublisher"]

P = ParamSpec("P")
T = TypeVar("T")

#: Heads of commands that a channel keeps.
KEPT: Final = 1024


class Routed:
    """Commands that store one message in several queues, or in one that may have ended.

    Arguments:
        queues: that get it.
        may_end: all replies that are 0 mean that its queues had ended.
    """

    __slots__ = ("commands", "may_end", "pipeline", "queues")

    def __init__(
        self, pipeline: Pipeline, commands: list[bytes], queues: list[str], may_end: bool = False
    ) -> None:
        self.pipeline = pipeline
        self.commands = commands
        self.queues = queues
        self.may_end = may_end

    def send(self, slot: Slot[Any]) -> None:
        """Send the commands; *slot* gets what became of them all.  Never switches."""
        outcomes = CopyOutcomes(len(self.commands), slot)

        def take(reply: Any) -> None:
            # In the reader.
            if isinstance(reply, Exception):
                outcomes.note(reply)
            else:
                outcomes.note(None if reply or not self.may_end else NoQueue())

        for command in self.commands:
            self.pipeline.post(command, take)


class RedisPublishingLink(PublishingLink, Protocol):
    """The parts that all publishers of one link share.

    Attributes:
        feeds: queue -> what serves its consumers of this link.
        large: the way of large bodies.
    """

    @property
    def commands(self) -> Commands: ...
    @property
    def queues(self) -> RedisQueues: ...
    @property
    def routes_to_queues(self) -> QueueRoutes: ...
    @property
    def large(self) -> LargeBodies: ...
    @property
    def answers(self) -> Answers: ...
    @property
    def feeds(self) -> Mapping[str, RedisFeed]: ...


class RedisPublisher(ChannelPublisher[Outgoing, "bytes | Routed"]):
    """The publisher of one channel.

    Arguments:
        channel: is closed by what the broker refuses.
        link: has the parts that all its channels share.
    """

    #: Makes a message to publish.
    prepare = Outgoing

    def __init__(self, channel: ChannelPort, link: RedisPublishingLink) -> None:
        super().__init__(channel, link)
        commands = link.commands
        self._link = link
        self._keys = commands.keys
        self._pipeline = commands.pipeline
        self._options = commands.options
        self._limit = commands.options.max_message_size
        self._encoding = commands.options.body_encoding
        self._queues = link.queues
        self._feeds = link.feeds
        self._tags = TagMaker()
        self._heads: dict[tuple[str, Any], tuple[bytes, bytes]] = {}

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception for a reply that is one; what ends the link ends it."""
        return self._pipeline.error(outcome, what)

    def _shown(self, message: Outgoing | dict[str, Any]) -> dict[str, Any]:
        return Outgoing.of(message).as_envelope()

    def _target(
        self,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: DeadlineLike | None,
    ) -> bytes | Routed | None:
        pipeline = self._pipeline
        if pipeline.writer.gate:
            pipeline.pass_gate(deadline or ENDLESS)  # type: ignore[arg-type]
        if message.__class__ is not Outgoing:
            message = Outgoing.of(message)
        is_plain = message.is_plain and len(message.raw) <= self._limit
        if exchange or not routing_key or not is_plain:
            return self._routed(message, exchange, routing_key, mandatory)
        if mandatory:
            queues = self._queues
            if not queues.is_there(routing_key):
                return None
            if queues.may_end(routing_key):
                return self._routed(message, "", routing_key, mandatory)
        priority = message.priority
        found = None
        if message.delivery_info is None:
            found = self._heads.get((routing_key, priority))
        head, route = found or self._head(message, routing_key)
        raw = b"".join(
            (
                b'{"body": ',
                message.body_json(self._encoding),
                message.middle,
                route,
                self._tags.next(),
                b'"}}',
            )
        )
        return b"%b%d\r\n%b\r\n" % (head, len(raw), raw)

    def _head(self, message: Outgoing, queue: str) -> tuple[bytes, bytes]:
        """The head of the command that appends a message to a queue, and the route in it."""
        self._refusing(self._queues.check_name, queue, Method.BASIC_PUBLISH)
        key = self._keys.list_for(queue, clamped(message.priority))
        head = b"*3\r\n$5\r\nLPUSH\r\n%b$" % bulk(key)
        route = message.route_json("", queue, self._encoding)
        if message.delivery_info is None:
            if len(self._heads) >= KEPT:
                self._heads.clear()
            self._heads[queue, message.priority] = head, route
        return head, route

    def _send(self, target: bytes | Routed, routing_key: str, slot: Slot[Any]) -> None:
        if isinstance(target, bytes):
            self._pipeline.post(target, slot.offer)
            self._pushed(routing_key)
            return
        if target.pipeline is not self._pipeline:
            self._wait_for_large(target, slot)
        else:
            target.send(slot)
        for queue in target.queues:
            self._pushed(queue)

    def _refusing(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function*, and close the channel when the broker refuses what it asks for."""
        try:
            return function(*args, **kwargs)
        except ChannelError as exc:
            self._channel.fail(exc)
            raise

    def _pushed(self, queue: str) -> None:
        """A message was sent to *queue*.  Never switches."""
        if queue in self._queues.expiring:
            self._queues.pushed(queue)
        feed = self._feeds.get(queue)
        if feed is not None:
            feed.ripen()

    # -- what is not the usual case

    def _routed(
        self, message: Outgoing, exchange: str, routing_key: str, mandatory: bool
    ) -> Routed | None:
        """Return the target of a message that is routed, or large, or has what does not count here."""
        known = self._queues
        if message.ignored:
            self._channel.warn_of_unsupported(
                ArgumentOf.MESSAGE, exchange or routing_key, message.ignored
            )
        if len(message.raw) > self._limit:
            raise too_large(len(message.raw), self._limit)
        queues, topics = self._targets(message, exchange, routing_key)
        if mandatory and exchange == "":
            queues = [each for each in queues if known.is_there(each)]
        if not queues and not topics:
            return None if mandatory else self._last_resort(message, exchange, routing_key)
        raw = self._envelope(message, exchange, routing_key)
        priority = clamped(message.priority)
        ending = {each for each in queues if known.may_end(each)}
        commands = [self._append(each, priority, raw, each in ending) for each in queues]
        commands += [pack(b"PUBLISH", topic, raw) for topic in topics]
        pipeline = self._pipeline if len(raw) <= LARGE else self._link.large.pipeline()
        self._channel.check_open()
        return Routed(pipeline, commands, queues, bool(ending) and not topics)

    def _wait_for_large(self, target: Routed, slot: Slot[Any]) -> None:
        """Send a large message, and wait: what this greenlet sends keeps its order.  May switch."""
        own: Slot[Any] = Slot()
        target.send(own)
        outcome = own.wait(ENDLESS)
        if isinstance(outcome, ErrorReply):
            outcome = target.pipeline.error(outcome, "publishing")
        slot.offer(outcome)

    def _append(self, queue: str, priority: int, raw: bytes, may_end: bool) -> bytes:
        """The command that appends a message to a queue; it needs no script that was sent before."""
        keys = self._keys
        key = keys.list_for(queue, priority)
        if may_end:
            return pack(b"EVAL", PUSH.text, 2, keys.queue(queue), key, raw)
        return pack(b"LPUSH", key, raw)

    def _targets(
        self, message: Outgoing, exchange: str, routing_key: str
    ) -> tuple[list[str], list[str]]:
        """The queues and the fan-out channels of a message.  May switch."""
        if not exchange:
            keys = [routing_key] if routing_key else []
            for name in ("CC", "BCC"):
                keys += message.headers.get(name) or ()
            for key in keys:
                self._refusing(self._queues.check_name, key, Method.BASIC_PUBLISH)
            return list(dict.fromkeys(keys)), []
        routes = self._refusing(
            self._link.routes_to_queues.find, exchange, routing_key, message.headers
        )
        topics = [self._keys.topic(name, key) for name, key in routes.topics]
        if self._options.sentinel_fanout_compat:
            topics += [self._keys.topic(name, key, legacy=True) for name, key in routes.topics]
        return routes.queues, topics

    def _last_resort(self, message: Outgoing, exchange: str, routing_key: str) -> Routed | None:
        """Return the target of a message that has no queue to go to."""
        last = self._options.deadletter_queue
        if last is None:
            return None
        warnings.warn(undeliverable(exchange, routing_key, last), stacklevel=6)
        raw = self._envelope(message, exchange, routing_key)
        return Routed(
            self._pipeline, [self._append(last, clamped(message.priority), raw, False)], []
        )

    def _envelope(self, message: Outgoing, exchange: str, routing_key: str) -> bytes:
        middle = message.middle
        if "BCC" in message.headers:
            shown = {name: each for name, each in message.headers.items() if name != "BCC"}
            middle = message.with_headers(shown)
        return b"".join(
            (
                b'{"body": ',
                message.body_json(self._encoding),
                middle,
                message.route_json(exchange, routing_key, self._encoding),
                self._tags.next(),
                b'"}}',
            )
        )

    # -- the end

    def end(self) -> None:
        """Note that the channel has ended: nothing was begun that it would have to finish."""

    def flush(self, timeout: float | None) -> None:
        """Return when acks have left.  (A publish returns when the server has it.)  May switch.

        Raises:
            TimeoutError: the server took too little within *timeout* seconds.
        """
        self._drain(Deadline(timeout))
        self._channel.check_open()

    def _drain(self, deadline: Deadline) -> None:
        link = self._link
        if link.lost is None:
            link.answers.wait_routed(deadline)
            link.answers.flush()
            self._pipeline.drain(deadline)


class WindowPublisher(RedisPublisher):
    """The same with ``publish_window``: some of its publishes may be unanswered.

    Arguments:
        size: how many.
        unasked: takes what becomes of those that nobody waits for.
    """

    def __init__(
        self, channel: ChannelPort, link: RedisPublishingLink, size: int, unasked: Unasked
    ) -> None:
        super().__init__(channel, link)
        self._unasked = unasked
        self._window = Window(size, unasked)

    def publish(
        self,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> None:
        """Publish *message*, and return when there is room for it in the window.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refused an earlier one of this channel.
        """
        window = self._window
        window.wait(deadline or ENDLESS)
        if window.failures:
            raise window.failures.take().error(self._pipeline)
        message = Outgoing.of(message)
        if exchange or not routing_key or mandatory or immediate or not message.is_plain:
            super().publish(message, exchange, routing_key, mandatory, immediate, deadline)
            return
        if get_hub() is not self._hub or not self._channel.is_open:
            self._channel.check_open()
        command = self._target(message, "", routing_key, False, deadline)
        assert isinstance(command, bytes)
        window.unanswered += 1
        self._pipeline.post(command, window.take)
        self._pushed(routing_key)

    def end(self) -> None:
        """Note that the channel has ended.  Never switches."""
        self._window.end()

    def flush(self, timeout: float | None) -> None:
        """Return when acks have left, and publishes are answered.  May switch.

        What became of publishes of earlier channels of this connection, which nobody has asked for, is
        raised, too.

        Raises:
            TimeoutError: the server took or answered too little within *timeout* seconds.
            PublishTimeout: some were not answered before the connection was lost; says how many.
            redis.exceptions.ResponseError: the server refused some; says how many.
        """
        self._drain(Deadline(timeout))
        window, unasked = self._window, self._unasked
        lost: Exception | None = None
        if window.unanswered or unasked.awaited:
            # Answers keep their order: behind this one's all are there.
            try:
                self._pipeline.call(PING, Deadline(timeout))
            except Exception as exc:
                lost = exc
        failures = window.failures.take()
        failures.add(unasked.failures.take())
        if failures:
            raise failures.error(self._pipeline) from lost
        if lost is not None:
            raise lost
