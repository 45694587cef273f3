"""Publishing: one LPUSH for each queue, one PUBLISH for each fan-out channel.

A publish waits for the server's answer, since that is what makes it safe; those of many greenlets
leave in one send and are answered together.  With ``publish_window`` a channel lets some of its
publishes be unanswered, and raises what became of them later.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from gevent import get_hub

from greenconn.abc import DeadlineLike
from greenconn.exceptions import ChannelError, Unroutable
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.transport.redis.envelope import Outgoing
from greenconn.transport.redis.moves import clamped
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.routes import routes_of
from greenconn.transport.redis.scripts import PUSH
from greenconn.transport.redis.sent import Sent, Window
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.arguments import ArgumentOf
from greenconn.transport.virtual.life import ChannelLife, ChannelState
from greenconn.transport.virtual.publishing import (
    Decided,
    no_immediate,
    return_message,
    too_large,
    undeliverable,
    unroutable,
)
from greenconn.transport.virtual.tags import TagMaker
from greenconn.wire.resp import bulk, pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["RedisPublisher"]

P = ParamSpec("P")
T = TypeVar("T")

#: Heads of commands that a channel keeps.
KEPT: Final = 1024
#: Bytes above which a message goes over a connection of its own.
LARGE: Final = 1024 * 1024

_OPEN: Final = ChannelState.OPEN


class RedisPublisher:
    """What one channel publishes with.

    Arguments:
        channel: is closed by what the broker refuses.
        link: sends the commands.
    """

    #: Makes a message to publish.
    prepare = Outgoing

    def __init__(self, channel: ChannelLife, link: RedisLink) -> None:
        self._channel = channel
        self._link = link
        self._pipeline = link.pipeline
        self._options = link.options
        self._encoding = link.options.body_encoding
        self._hub = link.home.hub
        self._tags = TagMaker()
        self._heads: dict[tuple[str, Any], tuple[bytes, bytes]] = {}
        size = link.options.publish_window
        self._window = Window(size, link.transport.unasked) if size else None

    def publish(
        self,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> None:
        """Publish *message*, and return when the server has it.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refused it (or, with ``publish_window``, an
                earlier one of this channel).
        """
        limit = ENDLESS if deadline is None else deadline
        if self._window is not None:
            self._publish_in_window(message, exchange, routing_key, mandatory, immediate, limit)
            return
        sent = self.begin(message, exchange, routing_key, mandatory, immediate, limit)
        if mandatory:
            self._finish(sent, message, exchange, routing_key, limit)
        else:
            sent.wait(limit)

    def _finish(
        self,
        sent: Sent | Decided,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        deadline: Deadline,
    ) -> None:
        """Wait until a mandatory message is stored, or return it.  May switch."""
        try:
            sent.wait(deadline)
        except Unroutable:
            envelope = Outgoing.of(message).as_envelope()
            return_message(self._channel, envelope, exchange, routing_key)

    def begin(
        self,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: DeadlineLike | None,
    ) -> Sent | Decided:
        """Send *message*; the result's ``wait`` tells what became of it.  May switch."""
        if (
            get_hub() is not self._hub
            or self._link.lost is not None
            or self._channel.state_of_life is not _OPEN
        ):
            self._channel.check_open()
        pipeline = self._pipeline
        if pipeline.writer.gate:
            pipeline.pass_gate(deadline or ENDLESS)  # type: ignore[arg-type]
        if immediate:
            raise no_immediate()
        if message.__class__ is not Outgoing:
            message = Outgoing.of(message)
        if exchange or not routing_key or not _is_plain(message):
            return self._begin_routed(message, exchange, routing_key, mandatory)
        if mandatory:
            directory = self._link.directory
            if not directory.is_there(routing_key):
                return Decided(unroutable("", routing_key))
            if directory.may_end(routing_key):
                return self._begin_routed(message, "", routing_key, mandatory)
        command = self._push(message, routing_key)
        slot: Slot[Any] = Slot()
        pipeline.post(command, slot.offer)
        self._pushed(routing_key)
        return Sent(pipeline, slot, None, routing_key)

    def _refusing(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function*, and close the channel when the broker refuses what it asks for."""
        try:
            return function(*args, **kwargs)
        except ChannelError as exc:
            self._channel.fail(exc)
            raise

    def _pushed(self, queue: str) -> None:
        """A message was sent to *queue*.  Never switches."""
        link = self._link
        if queue in link.directory.expiring:
            link.directory.pushed(queue)
        feed = link.feeds.get(queue)
        if feed is not None:
            feed.hint()

    def _push(self, message: Outgoing, queue: str) -> bytes:
        """The command that appends a message to a queue, sent to it by name."""
        priority = message.priority
        found = self._heads.get((queue, priority)) if message.delivery_info is None else None
        if found is None:
            self._refusing(self._link.directory.check_name, queue, Method.BASIC_PUBLISH)
            key = self._link.keys.list_for(queue, clamped(priority))
            found = (
                b"*3\r\n$5\r\nLPUSH\r\n%b$" % bulk(key),
                message.route_json("", queue, self._encoding),
            )
            if message.delivery_info is None:
                if len(self._heads) >= KEPT:
                    self._heads.clear()
                self._heads[queue, priority] = found
        head, route = found
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

    # -- what is not the usual case

    def _begin_routed(
        self, message: Outgoing, exchange: str, routing_key: str, mandatory: bool
    ) -> Sent | Decided:
        """Send a message that has to be routed, or is large, or has what does not count here."""
        link = self._link
        if message.ignored:
            self._channel.warn_of_unsupported(
                ArgumentOf.MESSAGE, exchange or routing_key, message.ignored
            )
        if len(message.raw) > self._options.max_message_size:
            raise too_large(len(message.raw), self._options.max_message_size)
        queues, topics = self._targets(message, exchange, routing_key)
        if mandatory and exchange == "":
            queues = [each for each in queues if link.directory.is_there(each)]
        if not queues and not topics:
            return self._nowhere(message, exchange, routing_key, mandatory)
        raw = self._envelope(message, exchange, routing_key)
        priority = clamped(message.priority)
        ending = [each for each in queues if link.directory.may_end(each)]
        commands = [self._append(each, priority, raw, each in ending) for each in queues]
        commands += [pack(b"PUBLISH", topic, raw) for topic in topics]
        pipeline = link.pipeline if len(raw) <= LARGE else link.large()
        self._channel.check_open()
        replies: list[Any] = []
        slot: Slot[Any] = Slot()
        for command in commands[:-1]:
            pipeline.post(command, replies.append)
        pipeline.post(commands[-1], slot.offer)
        if pipeline is link.pipeline:
            for queue in queues:
                self._pushed(queue)
        where = f"exchange {exchange!r}" if exchange else routing_key
        lost = unroutable(exchange, routing_key) if mandatory and ending and not topics else None
        sent = Sent(pipeline, slot, replies, where, lost)
        if pipeline is not link.pipeline:
            try:
                sent.wait()  # so that what this greenlet sends keeps its order
            except Unroutable as exc:
                return Decided(exc)
            for queue in queues:
                self._pushed(queue)
            return Decided(None)
        return sent

    def _append(self, queue: str, priority: int, raw: bytes, may_end: bool) -> bytes:
        """The command that appends a message to a queue; it needs no script that was sent before."""
        keys = self._link.keys
        key = keys.list_for(queue, priority)
        if may_end:
            return pack(b"EVAL", PUSH.text, 2, keys.queue(queue), key, raw)
        return pack(b"LPUSH", key, raw)

    def _targets(
        self, message: Outgoing, exchange: str, routing_key: str
    ) -> tuple[list[str], list[str]]:
        """The queues and the fan-out channels of a message.  May switch."""
        link = self._link
        if not exchange:
            keys = [routing_key] if routing_key else []
            for name in ("CC", "BCC"):
                keys += message.headers.get(name) or ()
            for key in keys:
                self._refusing(link.directory.check_name, key, Method.BASIC_PUBLISH)
            return list(dict.fromkeys(keys)), []
        routes = self._refusing(routes_of, link, exchange, routing_key, message.headers)
        topics = [link.keys.topic(name, key) for name, key in routes.topics]
        if link.options.sentinel_fanout_compat:
            topics += [link.keys.topic(name, key, legacy=True) for name, key in routes.topics]
        return routes.queues, topics

    def _nowhere(
        self, message: Outgoing, exchange: str, routing_key: str, mandatory: bool
    ) -> Sent | Decided:
        """A message has no queue to go to."""
        if mandatory:
            return Decided(unroutable(exchange, routing_key))
        last = self._options.deadletter_queue
        if last is None:
            return Decided(None)
        warnings.warn(undeliverable(exchange, routing_key, last), stacklevel=6)
        slot: Slot[Any] = Slot()
        self._pipeline.post(
            pack(
                b"LPUSH",
                self._link.keys.list_for(last, clamped(message.priority)),
                self._envelope(message, exchange, routing_key),
            ),
            slot.offer,
        )
        return Sent(self._pipeline, slot, None, last)

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

    # -- the window

    def _publish_in_window(
        self,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline,
    ) -> None:
        window = self._window
        assert window is not None
        window.wait(deadline)
        if window.failures:
            raise window.failures.take().error(self._pipeline)
        if message.__class__ is not Outgoing:
            message = Outgoing.of(message)
        if exchange or not routing_key or mandatory or immediate or not _is_plain(message):
            sent = self.begin(message, exchange, routing_key, mandatory, immediate, deadline)
            self._finish(sent, message, exchange, routing_key, deadline)
            return
        if get_hub() is not self._hub or not self._channel.is_open:
            self._channel.check_open()
        if self._pipeline.writer.gate:
            self._pipeline.pass_gate(deadline)
        command = self._push(message, routing_key)
        window.unanswered += 1
        self._pipeline.post(command, window.take)
        self._pushed(routing_key)

    def end(self) -> None:
        """Note that the channel has ended.  Never switches."""
        if self._window is not None:
            self._window.end()

    def flush(self, timeout: float | None) -> None:
        """Return when acks have left, and publishes of a ``publish_window`` are answered.  May switch.

        What became of publishes of earlier channels of this connection, which nobody has asked for, is
        raised, too.

        Raises:
            TimeoutError: the server took or answered too little within *timeout* seconds.
            PublishTimeout: some were not answered before the connection was lost; says how many.
            redis.exceptions.ResponseError: the server refused some; says how many.
        """
        link = self._link
        if link.lost is None:
            deadline = Deadline(timeout)
            link.answers.wait_routed(deadline)
            link.answers.flush()
            link.pipeline.drain(deadline)
        window, unasked = self._window, link.transport.unasked
        if window is None:
            self._channel.check_open()
            return
        lost: Exception | None = None
        if window.unanswered or unasked.awaited:
            # Answers keep their order: behind this one's all are there.
            try:
                self._pipeline.call(pack(b"PING"), Deadline(timeout))
            except Exception as exc:
                lost = exc
        failures = window.failures.take()
        failures.add(unasked.failures.take())
        if failures:
            raise failures.error(self._pipeline) from lost
        if lost is not None:
            raise lost


def _is_plain(message: Outgoing) -> bool:
    """Whether it goes to the one queue that its routing key names, over the common connection."""
    headers = message.headers
    return (
        len(message.raw) <= LARGE
        and not (headers and ("CC" in headers or "BCC" in headers))
        and not message.ignored
    )
