"""Publishing: one LPUSH for each queue, one PUBLISH for each fan-out channel.

A publish waits for the server's answer, since that is what makes it safe; those of many greenlets
leave in one send and are answered together.  With ``publish_window`` a channel lets some of its
publishes be unanswered, and raises what became of them later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from greenconn.broker.dead_letters import visible_headers
from greenconn.broker.port import Entry, NoQueue
from greenconn.broker.publisher import (
    ChannelPublisher,
    Completion,
    CopyOutcomes,
)
from greenconn.broker.settlement_port import HeldMessage
from greenconn.delays import delay_of
from greenconn.exceptions import ContentTooLarge
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.jsoncodec import loads
from greenconn.transport.redis.commands import CommandPipeline, Commands, as_pairs
from greenconn.transport.redis.envelope import LARGE, Outgoing
from greenconn.transport.redis.fanout import broadcast_command, topic_of
from greenconn.transport.redis.keys import Keys
from greenconn.transport.redis.pipeline import ENDLESS, CommandWriter, Pipeline, ignore
from greenconn.transport.redis.scripts import PUSH
from greenconn.transport.redis.server import ExtraSocket, Opener, Welcome
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.arguments import ArgumentOf
from greenconn.transport.virtual.names import TagMaker
from greenconn.wire.resp import ErrorReply, bulk, pack

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.transport.redis.link import RedisLink


__all__ = ["LargeBodies", "RedisLink", "RedisPublisher"]

#: Heads of commands that a channel keeps.
KEPT: Final = 1024
#: The server's setting for the bytes of a string, its least value, and the usual one.
LONGEST: Final = b"proto-max-bulk-len"
LEAST_LONGEST: Final = 1024 * 1024
USUAL_LONGEST: Final = 512 * 1024 * 1024
#: Bytes by which a message may grow when it is delayed, requeued or dead-lettered.
MARGIN: Final = 64 * 1024


def too_long(limit: str, size: int | None = None) -> ContentTooLarge:
    """Return the error of a message that the server does not take."""
    subject = "message" if size is None else f"message of {size} bytes, with headers and encoding,"
    return ContentTooLarge(
        f"{subject} is above the limit of the server, proto-max-bulk-len ({limit}): split it, store it "
        f"elsewhere and send where it is, or raise the setting"
    )


class Routed:
    """Commands that store one message in several queues, or in one that may have ended.

    Arguments:
        queues: that get it.
        may_end: all replies that are 0 mean that its queues had ended.

    Attributes:
        stored: called when one is stored; must not switch.
    """

    __slots__ = ("commands", "may_end", "pipeline", "queues", "stored")

    def __init__(
        self,
        pipeline: CommandPipeline,
        commands: list[bytes],
        queues: list[str],
        may_end: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.commands = commands
        self.queues = queues
        self.may_end = may_end
        self.stored: Callable[[], object] | None = None

    def send(self, done: Completion) -> None:
        """Send the commands; *done* gets their outcome.  Never switches."""
        outcomes = CopyOutcomes(len(self.commands), done)

        def take(reply: Any) -> None:
            # In the reader.
            if isinstance(reply, Exception):
                outcomes.note(reply)
            else:
                outcomes.note(None if reply or not self.may_end else NoQueue())
                if self.stored is not None:
                    self.stored()

        self._send(take, done)

    def _send(self, take: Callable[[Any], object], done: Completion) -> None:
        """Send the commands; *take* gets the reply to each.  Never switches."""
        for command in self.commands:
            self.pipeline.post(command, take)


class LargeOutcome:
    """The outcome of a message that does not leave by the common pipeline.

    Arguments:
        done: gets it.

    Attributes:
        arrived: filled when the outcome is there.
    """

    __slots__ = ("_done", "_pipeline", "arrived")

    def __init__(self, pipeline: CommandPipeline, done: Completion) -> None:
        self._pipeline = pipeline
        self._done = done
        self.arrived: Slot[None] = Slot()

    @property
    def has_left(self) -> bool:
        """Whether the message is not to be stored any more."""
        return self._done.has_left

    def offer(self, value: Any) -> bool:
        """Take the outcome.  In the reader."""
        if isinstance(value, ErrorReply):
            # A server that does not tell its limit ends the connection with this reply.
            is_too_long = "invalid bulk length" in str(value)
            value = (
                too_long(str(value)) if is_too_long else self._pipeline.error(value, "publishing")
            )
        self.arrived.offer(None)
        return self._done.offer(value)


class LargeBodies:
    """The way of bodies above 1 MiB, so that they do not hold up the small ones.

    A server ends the connection of a client that sends a string above its setting proto-max-bulk-len,
    and what the client had sent before may have been carried out without an answer.  So it is asked for
    its limit before the first message that may be above it.

    Attributes:
        socket: opened when the first one comes.
    """

    def __init__(self, commands: Commands, server: Opener) -> None:
        self._commands = commands
        self._server = server
        self._longest = LEAST_LONGEST
        self.socket = ExtraSocket(commands, "redis-large")

    def check(self, size: int) -> None:
        """See that the server takes a message of so many bytes.  May switch.

        Raises:
            ContentTooLarge: the server does not.
            Exception: as :meth:`Commands.call`.
        """
        if size > self._longest - MARGIN:
            self._longest = self._ask_longest()
            if size > self._longest - MARGIN:
                raise too_long(f"{self._longest} bytes, of which {MARGIN} are for headers", size)

    def _ask_longest(self) -> int:
        """Return how many bytes a string may have for the server.  May switch."""
        command = pack(b"CONFIG", b"GET", LONGEST)
        try:
            found = as_pairs(self._commands.call(command, what="publishing"))
        except ResponseError:
            return USUAL_LONGEST  # a server, or a user, that is not told
        return int(found.get(LONGEST, USUAL_LONGEST))

    def pipeline(self) -> Pipeline:
        """Return the socket, opened now if it is not.  May switch.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.server.open_pipeline`.
        """
        pipeline = self.socket.pipeline
        if pipeline is None or pipeline.lost is not None:
            pipeline = self.socket.open(self._connect)
        if pipeline.writer.must_wait:
            pipeline.wait_writable(ENDLESS)
        return pipeline

    def _connect(self) -> tuple[Pipeline, Welcome]:
        server = self._server
        # All waiters have the error of a loss, and the next call opens it again.
        return server.open(Deadline(server.connect_timeout), ignore, ignore)


class RedisPublisher(ChannelPublisher["RedisLink", Outgoing, "bytes | Routed"]):
    """The publisher of one channel.

    Arguments:
        channel: is closed by what the broker refuses.
        link: has the parts that all its channels share.
    """

    #: Makes a message to publish.
    prepare = Outgoing

    def __init__(self, channel: StoreChannel[Any], link: RedisLink) -> None:
        super().__init__(channel, link)
        commands = link.commands
        self._keys = commands.keys
        self._pipeline = commands.pipeline
        self._writer: CommandWriter = commands.pipeline.writer
        self._options = commands.options
        self._encoding = commands.options.body_encoding
        self._queues = link.queues
        self._feeds = link.feeds
        #: Bytes that a message may have without further checks.
        self._most = min(self._limit, LEAST_LONGEST - MARGIN)
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
        deadline: Deadline | None,
    ) -> bytes | Routed | None:
        if self._writer.must_wait:
            self._pipeline.wait_writable(deadline or ENDLESS)
        if message.__class__ is not Outgoing:
            message = Outgoing.of(message)
        if (
            exchange
            or not (routing_key and message.is_plain)
            or (mandatory and not self._queues.is_permanent(routing_key))
        ):
            if message.ignored:
                self._channel.warn_of_unsupported(
                    ArgumentOf.MESSAGE, exchange or routing_key, message.ignored
                )
            size = len(message.raw)
            return self._routed(
                message, size, message.headers, exchange, routing_key, mandatory, deadline
            )
        head, route = (
            message.delivery_info is None  # not one that is sent on
            and self._heads.get((routing_key, message.priority))
        ) or self._head(message, routing_key)
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
        length = len(raw)
        if length > self._most:
            self._check_size(length)
        return b"%b%d\r\n%b\r\n" % (head, length, raw)

    def _check_size(self, size: int) -> None:
        """See that a message of so many bytes may be sent.  May switch.

        Raises:
            ContentTooLarge: it is above ``max_message_size``, or above the limit of the server.
        """
        if size > self._limit:
            raise ContentTooLarge(
                f"message of {size} bytes, with headers and encoding, is above max_message_size "
                f"({self._limit} bytes)"
            )
        self.link.large.check(size)

    def _head(self, message: Outgoing, queue: str) -> tuple[bytes, bytes]:
        """Return the head of the command that appends a message to a queue, and the route in it."""
        self._queues.check_name(queue, Method.BASIC_PUBLISH)
        key = self._keys_of(queue).list_for(queue, message.priority)
        head = b"*3\r\n$5\r\nLPUSH\r\n%b$" % bulk(key)
        route = message.route_json("", queue, self._encoding)
        if message.delivery_info is None:
            if len(self._heads) >= KEPT:
                self._heads.clear()
            self._heads[queue, message.priority] = head, route
        return head, route

    def replacement(
        self, message: Outgoing | dict[str, Any], queue: str
    ) -> Callable[[HeldMessage], object] | None:
        message = Outgoing.of(message)
        delay = delay_of(message.headers)
        if not delay or topic_of(queue) is not None or not self.link.directory.is_there(queue):
            return None
        raw = self._envelope(message, "", queue)
        if len(raw) > self._most:
            return None
        # As the entry of a dead letter, which may be stored by a later life of the link.
        entry = Entry(queue, loads(raw), delay=delay)
        return partial(self.link.settlements.replace, [entry])

    def _put(
        self,
        target: bytes | Routed,
        queue: str,
        done: Completion,
        deadline: Deadline | None,
    ) -> None:
        if isinstance(target, bytes):
            self._pipeline.post(target, done.offer)
            self._pushed(queue)
            return
        if target.pipeline is not self._pipeline:
            self._put_large(target, done, deadline or ENDLESS)
        else:
            target.send(done)
        for each in target.queues:
            self._pushed(each)

    def _pushed(self, queue: str) -> None:
        """Note that a message was sent to *queue*.  Never switches."""
        if queue in self._queues.expiring:
            self._queues.pushed(queue)
        feed = self._feeds.get(queue)
        if feed is not None:
            feed.wake()

    # -- what is not the usual case

    def _addressed(
        self,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        queues: Sequence[str],
    ) -> Routed:
        message = Outgoing.of(message)
        raw = self._envelope(message, exchange, routing_key)
        if len(raw) > self._most:
            self._check_size(len(raw))
        copies: list[tuple[str, bytes]] = []
        lists, is_ending = [], False
        delay = delay_of(message.headers)
        for name in queues:
            topic = topic_of(name)
            if delay:
                copies.append((name, self._delayed(name, message.priority, raw, delay, topic)))
                continue
            if topic is None:
                may_end = self._queues.may_end(name)
                is_ending = is_ending or may_end
                copies.append((name, self._append(name, message.priority, raw, may_end)))
                lists.append(name)
                continue
            copies.append((name, broadcast_command(self._keys_of(topic[0]), *topic, raw)))
            if self._options.sentinel_fanout_compat:
                legacy = self._keys.topic(*topic, legacy=True)
                copies.append((name, pack(b"PUBLISH", legacy, raw)))
        target = self._placed(copies, len(raw), lists, is_ending and len(lists) == len(copies))
        if delay:
            target.stored = partial(self._expect, queues, delay)
        return target

    def _placed(
        self, copies: list[tuple[str, bytes]], size: int, lists: list[str], may_end: bool
    ) -> Routed:
        """Return the target of commands, each with what it stores its copy in.  May switch.

        Arguments:
            size: bytes of each copy.
        """
        pipeline = self._pipeline if size <= LARGE else self.link.large.pipeline()
        return Routed(pipeline, [command for _, command in copies], lists, may_end)

    def _keys_of(self, queue: str) -> Keys:
        """Return the names of the keys of a queue.  Never switches."""
        return self._keys

    def _put_large(self, target: Routed, done: Completion, deadline: Deadline) -> None:
        """Send a large message, and wait: what this greenlet sends keeps its order.  May switch."""
        own = LargeOutcome(target.pipeline, done)
        target.send(own)
        with suppress(TimeoutError):  # the result says so
            own.arrived.wait(deadline)

    def _append(self, queue: str, priority: Any, raw: bytes, may_end: bool) -> bytes:
        """Return the command that appends a message to a queue; it does not need a loaded script."""
        keys = self._keys_of(queue)
        key = keys.list_for(queue, priority)
        if may_end:
            return pack(b"EVAL", PUSH.text, 2, keys.queue(queue), key, raw)
        return pack(b"LPUSH", key, raw)

    def _delayed(self, queue: str, priority: Any, raw: bytes, delay: float, topic: Any) -> bytes:
        """Return the command that stores a message that is delayed.

        Raises:
            ValueError: it is broadcast, and nothing keeps it until then.
        """
        if topic is not None:
            raise ValueError(
                f"delay must be None for fan-out exchange {topic[0]!r}, which Redis broadcasts "
                f"(or set the transport option fanout_lists), got {delay:g}"
            )
        keys = self._keys_of(queue)
        declaration = keys.queue(queue) if self._queues.may_end(queue) else None
        key = keys.list_for(queue, priority)
        return self.link.delays_of(queue).put_command(key, declaration, raw, delay)

    def _expect(self, queues: Sequence[str], delay: float) -> None:
        """Look after a message that was stored with a delay.  In the reader."""
        for queue in queues:
            self.link.delays_of(queue).expect(delay)

    def _envelope(self, message: Outgoing, exchange: str, routing_key: str) -> bytes:
        middle = message.middle
        if "BCC" in message.headers:
            middle = message.with_headers(visible_headers(message.headers))
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
