"""Fan-out over pub/sub: a message reaches the queues that are subscribed when it is published.

Subscriptions are to patterns of channels, as in kombu.  In a cluster messages may be published to shard
channels instead: one for each exchange.  A message has the channel that would have been meant in front
of it, so that a subscriber can compare it with its patterns.

A queue that is bound to a fan-out exchange is subscribed to the exchange's channel while it is consumed.
The subscription has a socket of its own, opened when it is needed: the server disconnects a subscriber
that reads slowly, and that must not affect the claims.  A lost one is opened again until it succeeds.
Messages may be missing then: the event ``fanout_gap`` calls the channel's handlers with ``(queue,
seconds)``, and the log has a line.  (``fanout_lists`` has no gaps: it uses lists.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from greenconn.broker.exchanges import Binding, BrokerState, FanoutRouter, Router
from greenconn.green.deadline import Deadline
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.options import Keys, RedisOptions
from greenconn.transport.redis.pipeline import PING, Commands, Pipeline, ignore
from greenconn.transport.redis.server import ExtraSocket, Opener, Welcome
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.claiming import RedisFeed

logger = logging.getLogger("greenconn.transport.redis")

#: For a lost connection of the subscriptions, as long as the link lives.
LISTENING: Final = RetryPolicy(first=0.1, longest=5.0)
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


class Shards(Protocol):
    """The subscriptions of one link to shard channels."""

    def listen(self, queue: str, bindings: Sequence[tuple[str, bytes]]) -> None:
        """Listen for a queue; returns when the nodes do.  May switch.

        Arguments:
            bindings: an exchange, and a pattern of channels.

        Raises:
            redis.exceptions.ResponseError: a node refuses.
            TimeoutError: a slot was not served within ``reply_timeout``.
        """

    def unbound(self, queue: str, exchange: str, pattern: bytes) -> None:
        """Listen no more for what one binding asked for.  Never switches."""

    def leave(self, queue: str) -> None:
        """Listen for a queue no more.  Never switches."""

    def stop(self) -> None:
        """End: the link is gone.  Never switches."""

    def forget(self) -> None:
        """Leave them to the parent process, in the child of a fork."""


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
            feed.source.broadcast(raw, self._number)

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
