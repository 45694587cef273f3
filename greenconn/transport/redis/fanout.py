"""Fan-out over pub/sub: a message reaches the queues that are subscribed when it is published.

Subscriptions are to patterns of channels, as in kombu.  In a cluster messages may be published to shard
channels instead: one for each exchange.  A message has the channel that would have been meant in front
of it, so that a subscriber can compare it with its patterns.

A queue that is bound to a fan-out exchange is subscribed to the exchange's channel while it is consumed.
The subscription has a socket of its own, opened when it is needed: the server disconnects a subscriber
that reads slowly, and that must not affect the claims.  A lost one is opened again until it succeeds.
Messages may be missing then: the event ``fanout_gap`` calls the channel's handlers with ``(queue,
seconds)``, and the log has a line.  (``fanout_lists`` has no gaps: it uses lists.)

Shard channels
--------------
With sharded pub/sub a message goes to one node of a cluster, not to all of them.  Each fan-out exchange
has one shard channel, in the slot of its partition, so it is served by the node to which the exchange's
messages are published.  The channel of a queue's exchange is subscribed to at that node, over a socket
that all such channels there share::

    SEEKING    the node is being looked for, or asked
    LISTENING  the node has the subscription
    CLOSED     no queue listens any more, or the link is over

A shard channel has no patterns: who subscribes gets the messages of all routing keys, and compares them
with the patterns of its bindings.

The node is looked for again when it says that the slot has left it (``sunsubscribe``), when its socket
is lost, and when the cluster says that it serves no slots any more (a silent master that was replaced).
Messages may be missing then, which is reported as a gap.

A subscription has no reply of its own, so a PING follows it: its reply says that the subscription was
taken, unless the slot has left the node in between, or an error came before it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from gevent import Greenlet
from redis.crc import key_slot

from greenconn.broker.exchanges import Binding, BrokerState, FanoutRouter, Router
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.slot import Condition, SingleFlight, Slot
from greenconn.green.supervisor import State, moved, spawn
from greenconn.transport.redis.errors import LinkLost, NodeLost
from greenconn.transport.redis.nodes import NOT_SERVED, Nodes, Place, place_named
from greenconn.transport.redis.options import Keys, RedisOptions
from greenconn.transport.redis.pipeline import PING, Commands, Pipeline, ignore
from greenconn.transport.redis.server import ExtraSocket, Opener, Welcome
from greenconn.wire.resp import ErrorReply, pack

if TYPE_CHECKING:
    from greenconn.transport.redis.claiming import RedisFeed

logger = logging.getLogger("greenconn.transport.redis")

#: For a lost connection of the subscriptions, as long as the link lives.
LISTENING: Final = RetryPolicy(first=0.1, longest=5.0)
#: For the node of a channel, as long as a queue listens.
SEEKING: Final = RetryPolicy(first=0.02, longest=1.0)
#: Errors that pass when the cluster has agreed, and first words of replies that do.
_PASSING: Final = (OSError, LinkLost)
_PASSING_REPLIES: Final = NOT_SERVED | {"ASK", "MOVED", "TRYAGAIN"}
#: Begins, among the queues that a message goes to, what stands for a channel.
_TOPIC: Final = "\0channel\0"


def topic_name(exchange: str, routing_key: str) -> str:
    """Return what stands for a channel among the queues that a message goes to."""
    return f"{_TOPIC}{exchange}\0{routing_key}"


def topic_of(name: str) -> tuple[str, str] | None:
    """Return the exchange and the routing key that *name* stands for; None: *name* is a queue's."""
    if not name.startswith(_TOPIC):
        return None
    exchange, _, routing_key = name[len(_TOPIC) :].partition("\0")
    return exchange, routing_key


def broadcast_command(keys: Keys, exchange: str, routing_key: str, raw: bytes) -> bytes:
    """Return the command that publishes a message to a fan-out exchange.

    Arguments:
        keys: of the partition of the exchange.
    """
    topic = keys.topic(exchange, routing_key).encode()
    if keys.is_sharded:
        payload = b"%d:%b%b" % (len(topic), topic, raw)
        return pack(b"SPUBLISH", keys.shard_channel(exchange), payload)
    return pack(b"PUBLISH", topic, raw)


def read_shard_message(payload: bytes) -> tuple[bytes, bytes]:
    """Return the channel that a message of a shard channel is meant for, and the message.

    Raises:
        ValueError: it is no message of ours.
    """
    start = payload.index(b":") + 1
    end = start + int(payload[: start - 1])
    return payload[start:end], payload[end:]


class BroadcastRouter(FanoutRouter):
    """One message on a channel, whatever queues are bound; exchanges get theirs as well.

    Arguments:
        exchange: the name of the exchange.
    """

    def __init__(self, exchange: str) -> None:
        super().__init__()
        self._exchange = exchange

    def match(self, routing_key: str, headers: Mapping[str, Any]) -> Collection[Binding]:
        topic = topic_name(self._exchange, routing_key)
        onward = [each for each in super().match(routing_key, headers) if each.to_exchange]
        return [Binding(self._exchange, topic, routing_key), *onward]


def router_of(options: RedisOptions, exchange: str, type: str) -> Callable[[], Router] | None:
    """Return what makes the router of an exchange; None: the usual one of its type."""
    if type != "fanout" or options.fanout_lists:
        return None
    return partial(BroadcastRouter, exchange)


class Fanout:
    """The subscriptions of one link.

    Arguments:
        commands: of the link.
        server: where it is.
        state: the exchanges and bindings that this connection knows.
        feeds: queue -> what serves its consumers of this link.
        gap_before: returns the seconds since a queue last listened in a former life, once; None: it
            did not.
        shards: makes the subscriptions to shard channels; they are None where there are to be none.
    """

    def __init__(
        self,
        commands: Commands,
        server: Opener,
        state: BrokerState,
        feeds: Mapping[str, RedisFeed],
        gap_before: Callable[[str], float | None],
        shards: Callable[[Fanout], Shards | None],
    ) -> None:
        self._commands = commands
        self._server = server
        self._state = state
        self._feeds = feeds
        self._gap_before = gap_before
        self.socket = ExtraSocket(commands, "redis-fanout")
        #: Channel -> the queues that are consumed and listen on it.
        self._listening: dict[bytes, dict[str, None]] = {}
        self._lost_at = 0.0
        self._number = 0
        self._shards = shards(self)

    @property
    def queues(self) -> set[str]:
        """The queues that listen."""
        return {queue for queues in self._listening.values() for queue in queues}

    # -- bindings

    def bound(self, queue: str) -> None:
        """Note that a queue was bound to a fan-out exchange.  May switch, where it is consumed."""
        feed = self._feeds.get(queue)
        if feed is not None and feed.consumers:
            self.listen(queue)

    def unbound(self, queue: str, exchange: str, routing_key: str) -> None:
        """Note that a queue was unbound.  Never switches."""
        for topic in self._channels(exchange, routing_key):
            self._leave(queue, topic.encode())
            if self._shards is not None:
                self._shards.unbound(queue, exchange, topic.encode())

    def _bindings(self, queue: str) -> list[tuple[str, bytes]]:
        """Return the exchanges and channels of a queue's bindings, as this connection knows them."""
        exchanges = self._state.exchanges
        if self._commands.options.fanout_lists:
            return []
        return [
            (exchange, topic.encode())
            for exchange, routing_key, _ in self._state.queue_bindings(queue)
            if exchange in exchanges and exchanges[exchange].type == "fanout"
            for topic in self._channels(exchange, routing_key)
        ]

    def _channels(self, exchange: str, routing_key: str) -> list[str]:
        """Return the patterns of channels that a binding listens on.

        A binding without a key takes messages of all keys; one with a key is a pattern, as in kombu.
        """
        commands = self._commands
        keys = [routing_key.replace("#", "*")] if routing_key else ["", "*"]
        legacy = (False, True) if commands.options.sentinel_fanout_compat else (False,)
        return list(
            dict.fromkeys(
                commands.keys.topic(exchange, key, legacy=each) for key in keys for each in legacy
            )
        )

    # -- listening

    def listen(self, queue: str) -> None:
        """Listen for a queue; returns when the server does.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refuses.
            OSError, LinkLost: there is no second connection to be had.
        """
        bindings = self._bindings(queue)
        if not bindings:
            return
        topics = [topic for _, topic in bindings]
        for topic in topics:
            self._listening.setdefault(topic, {})[queue] = None
        pipeline = self.socket.pipeline
        if pipeline is None or pipeline.lost is not None:
            self.socket.open(self._connect, self._begin)
        else:
            self._subscribe(pipeline, topics)
        if self._shards is not None:
            self._shards.listen(queue, bindings)
        gap = self._gap_before(queue)
        if gap is not None:
            self.report_gap([queue], gap)

    def leave(self, queue: str) -> None:
        """Listen for a queue no more.  Never switches."""
        for topic in [each for each, queues in self._listening.items() if queue in queues]:
            self._leave(queue, topic)
        if self._shards is not None:
            self._shards.leave(queue)

    def _leave(self, queue: str, topic: bytes) -> None:
        queues = self._listening.get(topic)
        if queues is None or queues.pop(queue, queue) is not None:
            return
        if not queues:
            del self._listening[topic]
            pipeline = self.socket.pipeline
            if pipeline is not None:
                pipeline.post_quiet(pack(b"PUNSUBSCRIBE", topic), ignore)
                pipeline.post(PING)  # else it would look like a reply that is late

    def _connect(self) -> tuple[Pipeline, Welcome]:
        deadline = Deadline(self._server.connect_timeout)
        return self._server.open(deadline, self._on_push, self._on_lost)

    def _begin(self, pipeline: Pipeline, welcome: Welcome) -> None:
        pipeline.takes_arrays = welcome.protocol == 2
        if self._listening:
            self._subscribe(pipeline, list(self._listening))

    def _subscribe(self, pipeline: Pipeline, topics: list[bytes]) -> None:
        command = pack(b"PSUBSCRIBE", *topics)
        pipeline.subscribe(command, what="subscribing to a fan-out exchange")

    # -- loss

    def _on_lost(self, exc: LinkLost) -> None:
        # In the reader, or in the hub.
        if self._commands.lost is None and self._listening:
            self._lost_at = monotonic()
            spawn("redis-fanout-reopen", self._reopen)

    def _reopen(self) -> None:
        for attempt in attempts(LISTENING):
            if self._commands.lost is not None or not self._listening:
                return
            with attempt:
                self.socket.open(self._connect, self._begin)
                break
            logger.debug(
                "%s: fan-out: %s",
                self._commands.where,
                attempt.error,
                extra={"connection": self._commands.where},
            )
        self.report_gap(self.queues, monotonic() - self._lost_at)

    def report_gap(self, queues: Iterable[str], seconds: float) -> None:
        """Tell that queues were not subscribed for some time.  May switch."""
        for queue in queues:
            logger.warning(
                "%s: queue %r was not subscribed to its fan-out exchanges for %.1f s: messages "
                "may be missing",
                self._commands.where,
                queue,
                seconds,
                extra={"connection": self._commands.where, "queue": queue},
            )
            feed = self._feeds.get(queue)
            channels = {each.channel for each in feed.consumers} if feed is not None else set()
            for channel in channels:
                for handler in list(channel.events.get("fanout_gap", ())):
                    handler(queue, seconds)

    # In the reader: nothing here may switch or run user code.

    def _on_push(self, push: list[Any]) -> None:
        if push[0] != b"pmessage":
            return
        for queue in list(self._listening.get(push[1], ())):
            self.deliver(queue, push[3])

    def deliver(self, queue: str, raw: bytes) -> None:
        """Deliver a message to the consumers of a queue.  In the reader."""
        feed = self._feeds.get(queue)
        if feed is not None:
            self._number += 1
            feed.broadcast(raw, self._number)

    # -- ending

    def stop(self) -> None:
        """End: the link is gone.  Never switches."""
        self.socket.stop()
        if self._shards is not None:
            self._shards.stop()

    def forget(self) -> None:
        """Leave them to the parent process, in the child of a fork."""
        self.socket.forget()
        if self._shards is not None:
            self._shards.forget()


class Shards:
    """The subscriptions of one link to shard channels.

    Arguments:
        commands: of the link.
        nodes: of the cluster.
        name_of: returns the shard channel of an exchange.  Never switches.
        fanout: takes messages.
    """

    def __init__(
        self,
        commands: Commands,
        nodes: Nodes,
        name_of: Callable[[str], bytes],
        fanout: Fanout,
    ) -> None:
        self._commands = commands
        self._nodes = nodes
        self._name_of = name_of
        self._fanout = fanout
        self._flight = SingleFlight("redis-shard-socket")
        self._sockets: dict[Place, ShardSocket] = {}
        self._channels: dict[bytes, ShardChannel] = {}

    @property
    def where(self) -> str:
        """The URL, password masked, for messages."""
        return self._commands.where

    # -- queues

    def listen(self, queue: str, bindings: Sequence[tuple[str, bytes]]) -> None:
        """Listen for a queue; returns when the nodes do.  May switch.

        Arguments:
            bindings: an exchange, and a pattern of channels.

        Raises:
            redis.exceptions.ResponseError: a node refuses.
            TimeoutError: a slot was not served within ``reply_timeout``.
        """
        self._commands.check_open()
        channels: dict[ShardChannel, None] = {}
        for exchange, pattern in bindings:
            name = self._name_of(exchange)
            channel = self._channels.get(name)
            if channel is None:
                channel = ShardChannel(exchange, name, self, self._nodes, self._fanout)
                self._channels[name] = channel
            channel.add(queue, pattern)
            channels[channel] = None
        options = self._commands.options
        deadline = Deadline(options.socket_timeout or options.reply_timeout)
        for channel in channels:
            channel.wait(deadline)
        self._commands.check_open()

    def unbound(self, queue: str, exchange: str, pattern: bytes) -> None:
        """Listen no more for what one binding asked for.  Never switches."""
        channel = self._channels.get(self._name_of(exchange))
        if channel is not None and channel.discard(queue, pattern):
            self._close(channel)

    def leave(self, queue: str) -> None:
        """Listen for a queue no more.  Never switches."""
        for channel in list(self._channels.values()):
            if channel.discard(queue):
                self._close(channel)

    def _close(self, channel: ShardChannel) -> None:
        del self._channels[channel.name]
        channel.close()

    # -- sockets

    def open(self, place: Place) -> Pipeline:
        """Return the socket to a node, opened now if it is not.  May switch.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.server.open_pipeline`.
        """
        socket = self._sockets.get(place)
        if socket is None:
            socket = self._sockets[place] = ShardSocket(place, self)
        pipeline = socket.pipeline
        if pipeline is None or pipeline.lost is not None:
            pipeline = self._flight.run(place, partial(self._open, socket))
        return pipeline

    def _open(self, socket: ShardSocket) -> Pipeline:
        nodes = self._nodes
        pipeline, welcome = nodes.open_further(socket.place, socket.on_push, socket.on_lost)
        pipeline.takes_arrays = welcome.protocol == 2
        socket.pipeline = pipeline
        return pipeline

    # -- ending

    def stop(self) -> None:
        """End: the link is gone, and so are its sockets.  Never switches."""
        for channel in list(self._channels.values()):
            self._close(channel)

    def forget(self) -> None:
        """Leave them to the parent process, in the child of a fork."""
        self._flight.forget()
        for channel in self._channels.values():
            channel.forget()
        self._channels.clear()

    # In the reader, or in the hub: nothing here may switch or run user code.

    def take(self, name: bytes, payload: bytes) -> None:
        """Take a message from a channel."""
        channel = self._channels.get(name)
        if channel is None:
            return
        try:
            topic, raw = read_shard_message(payload)
        except ValueError:
            spawn(
                "log",
                logger.warning,
                "%s: a message of another program was dropped from shard channel %r, which is of "
                "fan-out exchange %r",
                self.where,
                name,
                channel.exchange,
                extra={"connection": self.where},
            )
            return
        for queue in channel.queues(topic):
            self._fanout.deliver(queue, raw)

    def ended(self, name: bytes, pipeline: Pipeline) -> None:
        """Note that a node has ended a subscription."""
        channel = self._channels.get(name)
        if channel is not None:
            channel.ended(pipeline, is_lost=False)

    def dropped(self, pipeline: Pipeline) -> None:
        """Note that a socket is lost."""
        for channel in list(self._channels.values()):
            channel.ended(pipeline, is_lost=True)


#: The parts of a pattern, as Redis reads it.
_GLOB: Final = re.compile(rb"\*+|\?|\[\^?(?:\\.|[^\]]-.|[^\]])*\]?|\\.|.", re.DOTALL)
#: A member of a class: an escaped character, a range (its end may be any character), or a character.
_MEMBER: Final = re.compile(rb"\\(?P<escaped>.)|(?P<first>[^\]])-(?P<last>.)|[^\]]", re.DOTALL)


class ShardState(State):
    """See the module's theory."""

    SEEKING = "seeking"
    LISTENING = "listening"
    CLOSED = "closed"


_SEEKING, _LISTENING, _CLOSED = ShardState

SHARD_MOVES: Final[Mapping[ShardState, frozenset[ShardState]]] = {
    ShardState.SEEKING: frozenset({ShardState.LISTENING, ShardState.CLOSED}),
    ShardState.LISTENING: frozenset({ShardState.SEEKING, ShardState.CLOSED}),
    ShardState.CLOSED: frozenset(),
}


@lru_cache(maxsize=4096)
def glob(pattern: bytes) -> re.Pattern[bytes]:
    """Return the regular expression of a pattern of Redis, as ``news.*``, ``?``, ``[a-c]``, ``[^a]``."""
    return re.compile(b"".join(map(_translated, _GLOB.findall(pattern))), re.DOTALL)


def _translated(part: bytes) -> bytes:
    if part.startswith(b"*"):
        return b".*"
    if part == b"?":
        return b"."
    if part.startswith(b"["):
        return _translated_class(part[1:])
    return re.escape(part[1:] if len(part) > 1 else part)


def _translated_class(text: bytes) -> bytes:
    """Return the class of characters that *text* describes, without its first bracket."""
    is_not = text.startswith(b"^")
    members = []
    for each in _MEMBER.finditer(text, 1 if is_not else 0):
        alone = each["escaped"] or each[0]
        ends = sorted((each["first"] or alone, each["last"] or alone))
        members.append(b"%b-%b" % (re.escape(ends[0]), re.escape(ends[1])))
    if not members:
        return b"." if is_not else b"(?!)"
    return b"[%b%b]" % (b"^" if is_not else b"", b"".join(members))


class ShardSocket:
    """The socket to one node, on which all channels that it serves are subscribed to.

    Arguments:
        place: of the node.
        shards: of the link.

    Attributes:
        pipeline: the socket that was opened last; None: there is none.
    """

    def __init__(self, place: Place, shards: Shards) -> None:
        self.place = place
        self._shards = shards
        self.pipeline: Pipeline | None = None

    # In the reader, or in the hub: nothing here may switch or run user code.

    def on_push(self, push: list[Any]) -> None:
        """Take a message, or what becomes of a subscription."""
        if push[0] == b"smessage":
            self._shards.take(push[1], push[2])
        elif push[0] == b"sunsubscribe" and self.pipeline is not None:
            self._shards.ended(push[1], self.pipeline)

    def on_lost(self, exc: LinkLost) -> None:
        """Note that the socket is lost."""
        pipeline, self.pipeline = self.pipeline, None
        if pipeline is not None:
            self._shards.dropped(pipeline)


class ShardChannel:
    """The subscription of one link to the channel of one exchange.

    Arguments:
        exchange: its name.
        name: of the channel.
        shards: of the link.
        nodes: of the cluster.
        fanout: gets the gaps.

    Attributes:
        state: see the module's theory.
    """

    def __init__(
        self, exchange: str, name: bytes, shards: Shards, nodes: Nodes, fanout: Fanout
    ) -> None:
        self.exchange = exchange
        self.name = name
        self._slot = key_slot(name)
        self._shards = shards
        self._nodes = nodes
        self._fanout = fanout
        self.state: ShardState = _SEEKING
        #: Pattern -> the queues that listen for it.
        self._listening: dict[bytes, dict[str, None]] = {}
        #: The socket on which it was subscribed to last; None: not on any that is open.
        self._asked: Pipeline | None = None
        #: The cluster is to be asked for its slots first.
        self._must_refresh = False
        #: When the subscription was lost; None: it is not.
        self._lost_at: float | None = None
        self._reason = ""
        self._is_settled = Condition()
        self._greenlet: Greenlet[..., Any] | None = None
        self._begin()

    def __repr__(self) -> str:
        return f"<Shard channel {self.name!r}: {self.state.value}>"

    def _move(self, state: ShardState) -> None:
        self.state = moved(self.state, state, SHARD_MOVES, "a shard channel")

    # -- queues

    def add(self, queue: str, pattern: bytes) -> None:
        """Let a queue have messages that match a pattern.  Never switches."""
        self._listening.setdefault(pattern, {})[queue] = None

    def discard(self, queue: str, pattern: bytes | None = None) -> bool:
        """Let a queue have no more of them, and return whether no queue is left.  Never switches.

        Arguments:
            pattern: None: all that it has.
        """
        for each in [pattern] if pattern is not None else list(self._listening):
            queues = self._listening.get(each, {})
            queues.pop(queue, None)
            if not queues:
                self._listening.pop(each, None)
        return not self._listening

    def queues(self, topic: bytes) -> Collection[str]:
        """Return the queues that get what is meant for a channel.  Never switches."""
        found: dict[str, None] = {}
        for pattern, queues in self._listening.items():
            if glob(pattern).fullmatch(topic):
                found.update(queues)
        return found

    # -- the subscription

    def wait(self, deadline: Deadline) -> None:
        """Wait until the node has it, or it is closed.  May switch.

        Raises:
            Exception: the node refuses.
            TimeoutError: it had not before the deadline; says why.
        """
        while self.state is _SEEKING:
            try:
                self._is_settled.wait(deadline)
            except TimeoutError as exc:
                if is_thrown(exc):
                    raise
                reason = f": {self._reason}" if self._reason else ""
                raise TimeoutError(
                    f"{self._shards.where}: no node took the subscription to fan-out exchange "
                    f"{self.exchange!r} within {deadline.timeout:g} s{reason}"
                ) from None

    def _begin(self) -> None:
        if self._greenlet is None:
            self._greenlet = spawn("redis-shard", self._run)

    def _run(self) -> None:
        for attempt in attempts(SEEKING):
            if self.state is _SEEKING:  # else the last reply was only late
                with attempt:
                    self._seek()
            if self.state is not _SEEKING:
                break
            error = attempt.error
            self._reason = str(error)
            if error is not None and not isinstance(error, _PASSING):
                logger.debug("%r: %s", self, error, extra={"connection": self._shards.where})
                self._is_settled.wake_all(error)
        self._greenlet = None
        since, self._lost_at = self._lost_at, None
        if since is not None and self.state is _LISTENING:
            queues = {each for queues in self._listening.values() for each in queues}
            self._fanout.report_gap(queues, monotonic() - since)

    def _seek(self) -> None:
        """Subscribe at the node that serves the slot.  May switch."""
        nodes = self._nodes
        must_refresh, self._must_refresh = self._must_refresh, True  # unless this one succeeds
        place = nodes.place_of(self._slot)
        if must_refresh or place is None:
            nodes.refresh()
            place = nodes.place_of(self._slot)
        if place is None:
            raise NodeLost(f"no node serves slot {self._slot} now")
        pipeline = self._shards.open(place)
        deadline = Deadline(nodes.connect_timeout)
        if pipeline.writer.must_wait:
            pipeline.wait_writable(deadline)
        outcome = self._ask(pipeline).wait(deadline)
        if isinstance(outcome, ErrorReply):
            if outcome.code == "MOVED":
                nodes.note_moved(self._slot, place_named(outcome, pipeline))
                self._must_refresh = False
            if outcome.code in _PASSING_REPLIES:
                raise NodeLost(str(outcome))
            raise pipeline.error(outcome, f"subscribing to fan-out exchange {self.exchange!r}")
        if isinstance(outcome, Exception):
            raise outcome
        self._must_refresh = False
        if self.state is _SEEKING:
            raise NodeLost(f"slot {self._slot} has left {pipeline.where}")

    def _ask(self, pipeline: Pipeline) -> Slot[Any]:
        """Send the subscription, and return what gets its outcome.  Never switches."""
        errors: list[Exception] = []
        outcome: Slot[Any] = Slot()

        def replied(reply: Any) -> None:
            # In the reader.
            result = errors[0] if errors else reply
            is_taken = not isinstance(result, Exception) and self._asked is pipeline
            if is_taken and self.state is _SEEKING:
                self._move(_LISTENING)
                self._is_settled.wake_all()
            outcome.offer(result)

        self._asked = pipeline
        pipeline.post_quiet(pack(b"SSUBSCRIBE", self.name), errors.append)
        pipeline.post(PING, replied)
        return outcome

    def ended(self, pipeline: Pipeline, *, is_lost: bool) -> None:
        """Note that a socket has not the subscription any more.  Never switches.

        Arguments:
            is_lost: the socket is lost; else the slot has left its node.
        """
        if self._asked is not pipeline:
            return
        self._asked = None
        self._must_refresh = is_lost
        if self.state is _LISTENING:
            self._move(_SEEKING)
            if self._lost_at is None:
                self._lost_at = monotonic()
            self._begin()

    def close(self) -> None:
        """End it, as no queue listens.  Never switches."""
        self._finish()
        pipeline, self._asked = self._asked, None
        if pipeline is not None and pipeline.lost is None:
            pipeline.post_quiet(pack(b"SUNSUBSCRIBE", self.name), ignore)
            pipeline.post(PING)  # else it would look like a reply that is late

    def forget(self) -> None:
        """Leave it to the parent process, in the child of a fork."""
        self._is_settled.forget()
        self._finish()

    def _finish(self) -> None:
        self._move(_CLOSED)
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)
        self._is_settled.wake_all()
