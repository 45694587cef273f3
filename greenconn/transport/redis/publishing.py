"""Publishing: one LPUSH for each queue, one PUBLISH for each fan-out channel.

A publish waits for the server's answer, since that is what makes it safe; those of many greenlets
leave in one send and are answered together.  With ``publish_window`` a channel lets some of its
publishes be unanswered, and raises what became of them later.

Confirms by replicas
--------------------
A master answers before its replicas have a write.  ``WAIT`` answers when they have all writes that came
before it over the same socket.  So it is sent, over that socket, when the master has answered; one at a
time, for all messages that were answered until then.  It holds up what is behind it on the socket, so it
waits for a moment only, and is repeated after a pause while too few replicas have the messages: who
waits decides for how long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gevent import get_hub
from redis.exceptions import ResponseError

from greenconn.broker.entities import ArgumentOf
from greenconn.broker.envelope import TagMaker
from greenconn.broker.errors import Method
from greenconn.broker.port import Entry, HeldMessage, NoQueue
from greenconn.broker.publishing import (
    ChannelPublisher,
    Completion,
    CopyOutcomes,
    RoutedOutcome,
)
from greenconn.broker.settlements import visible_headers
from greenconn.delays import delay_of
from greenconn.exceptions import ContentTooLarge, NotFound, PublishTimeout
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.slot import Condition, Slot
from greenconn.green.supervisor import spawn
from greenconn.jsoncodec import loads
from greenconn.transport.redis.envelope import LARGE, Outgoing
from greenconn.transport.redis.fanout import broadcast_command, topic_of
from greenconn.transport.redis.options import Keys
from greenconn.transport.redis.pipeline import (
    ENDLESS,
    CommandPipeline,
    Commands,
    CommandWriter,
    Pipeline,
    as_pairs,
    ignore,
)
from greenconn.transport.redis.scripts import PUSH
from greenconn.transport.redis.server import ExtraSocket, Opener, Welcome
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


#: Bytes of an envelope around its parts.
_FRAME: Final = len(b'{"body": ' + b'"}}')


class Routed:
    """Commands that store one message in several queues, or in one that may have ended.

    Arguments:
        queues: that get it.
        may_end: all replies that are 0 mean that its queues had ended.

    Attributes:
        stored: called when one is stored; must not switch.
        watched: returns what gets the outcome in the place of *done*; None: nothing does.
    """

    __slots__ = ("commands", "may_end", "pipeline", "queues", "stored", "watched")

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
        self.watched: Callable[[Completion], Completion] | None = None

    def send(self, done: Completion) -> None:
        """Send the commands; *done* gets their outcome.  Never switches."""
        if self.watched is not None:
            done = self.watched(done)
        if len(self.commands) == 1 and not self.may_end and self.stored is None:
            self._send(done.offer, done)
            return
        outcomes = CopyOutcomes(len(self.commands), done)

        def take(reply: Any) -> None:
            # In the reader.
            if isinstance(reply, Exception):
                outcomes.offer(reply)
            else:
                outcomes.offer(None if reply or not self.may_end else NoQueue())
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
            if exchange and message.is_plain and size <= self._limit:
                target = self._known_target(message, exchange, routing_key, deadline)
                if target is not None:
                    return target
            return self._routed(
                message, size, message.headers, exchange, routing_key, mandatory, deadline
            )
        head, route = (
            message.delivery_info is None  # not one that is sent on
            and self._heads.get((routing_key, message.priority))
        ) or self._head(message, routing_key)
        body, middle, tag = message.body_json(self._encoding), message.middle, self._tags.next()
        length = len(body) + len(middle) + len(route) + len(tag) + _FRAME
        if length > self._most:
            self._check_size(length)
        # In one step: a body may be large.
        start = b'%d\r\n{"body": ' % length
        return b"".join((head, start, body, middle, route, tag, b'"}}\r\n'))

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

    def _known_target(
        self,
        message: Outgoing,
        exchange: str,
        routing_key: str,
        deadline: Deadline | None,
    ) -> Routed | None:
        """Return the target by the bindings that are known; None: they are to be read.  May switch."""
        link = self.link
        last_change = link.topology.known_since(exchange)
        if last_change is None:
            return None
        queues = link.state.route(exchange, routing_key, message.headers)
        is_permanent = self._queues.is_permanent
        if not queues or not all(topic_of(each) or is_permanent(each) for each in queues):
            return None
        target = self._addressed(message, exchange, routing_key, queues)
        if target.pipeline is not self._pipeline:
            return None  # whose replies come before what the server tells of changes
        self._wait_in_order(last_change, deadline)
        self._channel.check_open()  # it may have been closed meanwhile
        send_rest = partial(self._send_rest, message, exchange, routing_key, queues)
        is_stale = partial(self._is_stale, last_change)
        target.watched = partial(
            RoutedOutcome, self._known_routes, last_change, is_stale, send_rest
        )
        return target

    def _is_stale(self, last_change: int, outcome: Any) -> bool:
        """Return whether a binding has changed before a message was stored.  In the reader."""
        is_known = self.link.topology.last_change == last_change
        return not is_known and not isinstance(outcome, Exception)

    def _send_rest(
        self,
        message: Outgoing,
        exchange: str,
        routing_key: str,
        sent: Collection[str],
        done: Completion,
    ) -> None:
        """Send a message to the queues that were not known to be bound, if there are any.  May switch.

        So no binding that was there before the publish is overlooked.
        """
        try:
            routes = self.link.routing.routes(exchange, routing_key, message.headers)
        except NotFound:
            routes = ()  # the exchange was deleted since the message was stored
        rest = [each for each in routes if each not in sent]
        if not rest:
            done.offer(None)
            return
        target = self._addressed(message, exchange, routing_key, rest)
        target.send(done)
        for each in target.queues:
            self._pushed(each)

    def _routes(
        self, exchange: str, routing_key: str, headers: Mapping[str, Any], mandatory: bool
    ) -> Sequence[str]:
        topology = self.link.topology
        last_change = topology.last_change
        queues = super()._routes(exchange, routing_key, headers, mandatory)
        if exchange:
            topology.note_known(exchange, last_change)
        return queues

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
        try:
            own.arrived.wait(deadline)
        except TimeoutError as exc:
            if is_thrown(exc):
                raise  # else the result says so

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
        declaration = self._queues.needed_by_delayed(queue)
        key = self._keys_of(queue).list_for(queue, priority)
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


logger = logging.getLogger("greenconn.transport.redis")


class Failures:
    """Publishes of a window that were refused, or were not confirmed before the connection was lost.

    Attributes:
        refused, uncertain: how many of each.
    """

    def __init__(self) -> None:
        self.refused = self.uncertain = 0
        #: What the server said to the first one that it refused, else how the connection was lost.
        self.first: Exception | None = None

    def __bool__(self) -> bool:
        return self.first is not None

    def note(self, reply: Exception) -> None:
        """Count one.  Never switches."""
        if isinstance(reply, ErrorReply):
            self.first = reply if not self.refused else self.first
            self.refused += 1
        else:
            self.first = self.first or reply
            self.uncertain += 1

    def take(self) -> Failures:
        """Return what there is, and forget it.  Never switches."""
        taken = Failures()
        taken.add(self)
        self.refused = self.uncertain = 0
        self.first = None
        return taken

    def add(self, other: Failures) -> None:
        """Count what *other* has, too.  Never switches."""
        if other.refused and not self.refused:
            self.first = other.first
        self.first = self.first or other.first
        self.refused += other.refused
        self.uncertain += other.uncertain

    def text(self, where: str) -> str:
        """Return the outcomes as a text."""
        parts = []
        if self.refused:
            parts.append(
                f"{self.refused} publishes of a publish_window were refused ({self.first})"
            )
        if self.uncertain:
            parts.append(
                f"{self.uncertain} publishes of a publish_window were not confirmed before the "
                f"connection was lost: the server may have them"
            )
        return f"{where}: {'; '.join(parts)}"

    def error(self, pipeline: CommandPipeline) -> BaseException:
        """Return the exception that says so; what ends the link ends it.  Never switches."""
        refused: BaseException | None = None
        if isinstance(self.first, ErrorReply):
            what = f"{self.refused} earlier publishes of a publish_window"
            refused = pipeline.error(self.first, what)
        if self.uncertain or refused is None:
            return PublishTimeout(self.text(pipeline.where), maybe_delivered=True)
        return refused


class UnreportedPublishes:
    """The outcomes of publishes whose channel ended before they were asked for; outlives all links.

    Attributes:
        awaited: publishes of such channels that are not answered yet.
        failures: what ``flush()`` raises.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._unlogged = Failures()
        self._will_log = False
        self._are_answered = Condition()
        self.awaited = 0
        self.failures = Failures()

    def add(self, failures: Failures) -> None:
        """Note the *failures* of a channel that ended.  Never switches."""
        if failures:
            self.failures.add(failures)
            self._unlogged.add(failures)
            self._log_soon()

    def offer(self, reply: Any) -> None:
        """Take the answer to a publish of a channel that has ended.  In the reader."""
        self.awaited -= 1
        if isinstance(reply, Exception):
            self.failures.note(reply)
            self._unlogged.note(reply)
            self._log_soon()
        if not self.awaited:
            self._are_answered.wake_all()

    def wait(self, deadline: Deadline) -> None:
        """Wait until all are answered.  May switch.

        Raises:
            TimeoutError: they were not before the deadline.
        """
        while self.awaited:
            self._are_answered.wait(deadline)

    def _log_soon(self) -> None:
        # Those that fail together get their errors together.
        if not self._will_log:
            self._will_log = True
            spawn("log", self.log)

    def hold(self) -> None:
        """Log nothing until ``log`` is called: more may come.  Never switches."""
        self._will_log = True

    def log(self) -> None:
        """Log, by number, what was not logged yet."""
        self._will_log = False
        if self._unlogged:
            logger.error(
                "%s", self._unlogged.take().text(self._where), extra={"connection": self._where}
            )


class WindowPublisher:
    """The publisher of one channel, some of whose publishes are confirmed while no greenlet waits.

    It is the receiver of the outcomes of those.

    Arguments:
        publisher: sends the messages.
        size: how many may be unanswered.
        unreported: gets what becomes of them when the channel has ended.
    """

    #: No publish of a window is dropped.
    has_left: Final = False

    def __init__(
        self, publisher: RedisPublisher, size: int, unreported: UnreportedPublishes
    ) -> None:
        self._publisher = publisher
        self._pipeline = publisher.link.commands.pipeline
        self._size = size
        self._half = size // 2
        self._unreported = unreported
        self._unanswered = 0
        #: Those of an open channel, which its next call raises.
        self._failures = Failures()
        self._has_room = Condition()
        self._has_ended = False
        self.prepare = publisher.prepare
        self.begin = publisher.begin
        self.give_back = publisher.give_back
        self.replacement = publisher.replacement

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
        while self._unanswered >= self._size:
            self._has_room.wait(deadline or ENDLESS)
        if self._failures:
            raise self._failures.take().error(self._pipeline)
        if message.__class__ is not Outgoing:
            message = Outgoing.of(message)
        if exchange or not routing_key or mandatory or not message.is_plain:
            self._publisher.publish(message, exchange, routing_key, mandatory, immediate, deadline)
            return
        self._publisher.send(message, "", routing_key, False, immediate, deadline, self)
        self._unanswered += 1

    def offer(self, reply: Any) -> bool:
        """Take the answer to one.  In the reader."""
        self._unanswered -= 1
        if self._has_ended:
            self._unreported.offer(reply)
        elif isinstance(reply, Exception):
            self._failures.note(reply)
        # Half of it at a time, so that a publisher is woken once for many.
        if self._unanswered <= self._half and self._has_room:
            self._has_room.wake_all()
        return True

    def end(self) -> None:
        """Note that the channel has ended.  Never switches."""
        if not self._has_ended:
            self._has_ended = True
            self._unreported.awaited += self._unanswered
            self._unreported.add(self._failures.take())

    def flush(self, timeout: float | None) -> None:
        """Return when acks have left, and publishes are answered.  May switch.

        What became of publishes of earlier channels of this connection, which was not asked for yet, is
        raised, too.

        Raises:
            TimeoutError: the server took or answered too little within *timeout* seconds.
            PublishTimeout: some were not confirmed before the connection was lost; says how many.
            redis.exceptions.ResponseError: the server refused some; says how many.
        """
        deadline = Deadline(timeout)
        self._publisher.link.flush_settlements(deadline)
        lost: TimeoutError | None = None
        try:
            # The end of a link answers all that were sent over it.
            while self._unanswered:
                self._has_room.wait(deadline)
            self._unreported.wait(deadline)
        except TimeoutError as exc:
            lost = exc
        failures = self._failures.take()
        failures.add(self._unreported.failures.take())
        if failures:
            raise failures.error(self._pipeline) from lost
        if lost is not None:
            raise lost


#: Milliseconds for which one WAIT holds up its socket, at most.
HELD_MS: Final = 20
#: Seconds between two of them while too few replicas have the messages.
PAUSE: Final = 0.1


class SocketConfirms:
    """The confirms of replicas for what was sent over one socket.

    Arguments:
        post: sends a command over the socket, given what takes its reply.
        count: replicas that must have a message.
    """

    def __init__(self, post: Callable[[bytes, Callable[[Any], Any]], None], count: int) -> None:
        self._post = post
        self._count = count
        self._command = pack(b"WAIT", count, HELD_MS)
        #: Messages that the master has: those that a WAIT is on its way for, and later ones.
        self._asked: list[Completion] = []
        self._later: list[Completion] = []
        self._timer: Any = None

    def add(self, done: Completion) -> None:
        """Wait for the replicas; *done* gets the outcome.  Never switches."""
        self._later.append(done)
        if not self._asked and self._timer is None:
            self._ask()

    def _ask(self) -> None:
        self._asked, self._later = self._later, []
        self._post(self._command, self._replied)

    def _replied(self, reply: Any) -> None:
        # In the reader.
        asked, self._asked = self._asked, []
        if isinstance(reply, int) and reply < self._count:
            self._later = [*(each for each in asked if not each.has_left), *self._later]
            if self._later:
                self._timer = get_hub().loop.timer(PAUSE, ref=False)
                self._timer.start(self._on_time)
            return
        for each in asked:
            each.offer(reply)
        if self._later and not self._asked:
            self._ask()

    def _on_time(self) -> None:
        # In the hub.
        timer, self._timer = self._timer, None
        timer.stop()
        timer.close()
        self._ask()


class ReplicaConfirms:
    """The confirms of replicas for one link.

    Arguments:
        count: replicas that must have a message.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._of: dict[CommandPipeline, SocketConfirms] = {}

    def add(self, pipeline: CommandPipeline, done: Completion) -> None:
        """Wait for the replicas of what was sent over a socket; *done* gets the outcome.

        Never switches.
        """
        found = self._of.get(pipeline)
        if found is None:
            for each in [each for each in self._of if each.lost is not None]:
                del self._of[each]  # those that wait get its error with the next WAIT
            found = self._of[pipeline] = SocketConfirms(pipeline.post, self._count)
        found.add(done)


class Stored:
    """The receiver of the master's answer.

    Arguments:
        confirms: wait for the replicas.
        pipeline: the socket over which it comes.
        done: gets the outcome.
    """

    __slots__ = ("_confirms", "_done", "_pipeline")

    def __init__(
        self, confirms: ReplicaConfirms, pipeline: CommandPipeline, done: Completion
    ) -> None:
        self._confirms = confirms
        self._pipeline = pipeline
        self._done = done

    @property
    def has_left(self) -> bool:
        """Whether the message is not to be stored any more."""
        return self._done.has_left

    def offer(self, value: Any) -> bool:
        """Take the master's answer.  In the reader."""
        if isinstance(value, Exception):
            return self._done.offer(value)
        self._confirms.add(self._pipeline, self._done)
        return True


class ReplicatedPublisher(RedisPublisher):
    """The publisher of one channel whose messages replicas must have.

    Arguments:
        channel: is closed by what the broker refuses.
        link: has the parts that all its channels share.
        confirms: of the link.
    """

    def __init__(
        self, channel: StoreChannel[Any], link: RedisLink, confirms: ReplicaConfirms
    ) -> None:
        super().__init__(channel, link)
        self._confirms = confirms

    def replacement(self, message: Outgoing | dict[str, Any], queue: str) -> None:
        """Return None: replicas must have a message before the one in its place goes."""

    def _put(
        self,
        target: bytes | Routed,
        queue: str,
        done: Completion,
        deadline: Deadline | None,
    ) -> None:
        pipeline = self._pipeline if isinstance(target, bytes) else target.pipeline
        super()._put(target, queue, Stored(self._confirms, pipeline, done), deadline)
