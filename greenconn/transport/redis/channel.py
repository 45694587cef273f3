"""A channel to a Redis."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from amqp.protocol import queue_declare_ok_t

from greenconn.transport.redis.getting import GettingMethods
from greenconn.transport.redis.link import RedisLink
from greenconn.transport.redis.publishing import PublishingToRedis
from greenconn.transport.redis.scripts import BIND
from greenconn.transport.virtual.consuming import generated_name
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.entities import EntityMethods
from greenconn.transport.virtual.life import closes_channel
from greenconn.transport.virtual.publishing import UndeliverableWarning
from greenconn.transport.virtual.refusal import Method, in_use, no_exchange, not_empty
from greenconn.transport.virtual.state import Binding, BrokerState, Exchange
from greenconn.wire.resp import pack

__all__ = ["Channel"]

#: A table of bindings of expiring queues is kept for so many times their expiry, and for an hour at
#: least (kombu's figures).
EXPIRY_FACTOR = 2
LEAST_EXPIRY_MS = 3_600_000


class Channel(EntityMethods, GettingMethods, PublishingToRedis):
    """A channel.  Any greenlet of its connection's hub may call any method at any time.

    Arguments:
        connection: the link.
    """

    connection: RedisLink

    def __init__(self, connection: RedisLink, channel_id: int | None = None) -> None:
        super().__init__(connection, channel_id)
        self._last_queue = ""
        self._init_deliveries()
        self._init_publishing()

    @property
    def state(self) -> BrokerState:
        """The exchanges, and the bindings made by this connection."""
        return self.connection.state

    def _queue_name(self, name: str) -> str:
        return name or self._last_queue

    def _check_queue(self, queue: str, method: Method) -> str:
        name = self._queue_name(queue)
        self.connection.directory.check(name, method)
        return name

    # -- exchanges

    def _exchange(self, name: str, method: Method) -> Exchange:
        known = self.connection.routing.learn(name)
        if known is None:
            raise no_exchange(name, self.virtual_host, method)
        if name not in self.state.exchanges:
            return self.state.declare(name, known.type)
        return known

    @closes_channel
    def exchange_declare(
        self,
        exchange: str = "",
        type: str = "direct",
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Make an exchange, or check that the existing one is the same.  May switch.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or there is no such type.
            AccessRefused: the name is reserved.
        """
        name = exchange or f"amq.{type or 'direct'}"
        self.connection.directory.settle()
        self.connection.routing.learn(name)
        super().exchange_declare(exchange, type, passive, durable, auto_delete, nowait, arguments)
        if not passive:
            # Each time: the server may have lost what it knew.
            self.connection.routing.note(self.state.exchanges[name])

    @closes_channel
    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings; one that is not there is no error.  May switch.

        Raises:
            PreconditionFailed: *if_unused*, and something is bound to it.
            AccessRefused: it is one of the ready-made exchanges.
        """
        link = self.connection
        if if_unused and link.routing.learn(exchange) is not None and link.routing.table(exchange):
            raise in_use("exchange", exchange, self.virtual_host, Method.EXCHANGE_DELETE)
        super().exchange_delete(exchange, if_unused, nowait)
        link.routing.drop(exchange)

    def _bind(self, binding: Binding, method: Method) -> None:
        self._exchange(binding.source, method)
        if binding.to_exchange:
            self._exchange(binding.destination, method)
        self.state.bind(binding)
        # Each time, as above; in the server's table it is there once.
        self._bound(binding)

    def _bound(self, binding: Binding) -> None:
        if binding.to_exchange or self.state.exchanges[binding.source].type == "headers":
            return
        link = self.connection
        keys = link.keys
        if self.state.exchanges[binding.source].type == "fanout" and not link.options.fanout_lists:
            link.fanout.bound(binding.destination)
        member = link.routing.row(binding)
        declared = link.directory.find(binding.destination)
        expires = None if declared is None else declared.expires_ms
        table = keys.bindings(binding.source)
        if expires is None:
            link.call_all(
                [
                    pack(b"SADD", table, member),
                    pack(b"SADD", keys.permanent_bindings(binding.source), member),
                ],
                what="binding",
            )
            return
        kept_ms = max(expires * EXPIRY_FACTOR, LEAST_EXPIRY_MS)
        tables = (table, keys.binding_deadlines)
        link.run(BIND, tables, member, binding.source, kept_ms, what="binding")

    def _unbound(self, binding: Binding) -> None:
        if not binding.to_exchange:
            self.connection.unbind(binding)

    # -- queues

    @closes_channel
    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> queue_declare_ok_t:
        """Make a queue, or check that the existing one is the same.  May switch.

        Arguments:
            queue: its name; empty makes one up.
            passive: only check that it exists.
            exclusive: for this connection only, and deleted with it.
            auto_delete: deleted when its last consumer leaves.
            arguments: ``x-expires`` and the like; docs/redis.rst lists those that count here.

        Returns:
            its name, how many messages wait, how many consumers it has.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or an argument cannot be.
            ResourceLocked: it is exclusive to another connection.
        """
        link = self.connection
        name = queue or generated_name("amq.gen-")
        if passive:
            link.directory.check(name, Method.QUEUE_DECLARE)
            link.directory.touch(name)
        else:
            link.directory.declare(
                name,
                Declaration(
                    durable=bool(durable),
                    auto_delete=bool(auto_delete),
                    owner=link.owner if exclusive else None,
                    arguments=dict(arguments or {}),
                ),
            )
        self._last_queue = name
        return queue_declare_ok_t(name, *link.directory.counts(name))

    @closes_channel
    def queue_purge(self, queue: str = "", nowait: bool = False) -> int:
        """Drop the messages that wait in a queue and return how many there were.  May switch."""
        link = self.connection
        name = self._check_queue(queue, Method.QUEUE_PURGE)
        lists = link.keys.lists(name)
        replies = link.call_all(
            [*(pack(b"LLEN", key) for key in lists), pack(b"DEL", *lists)],
            what=f"purging queue {name!r}",
        )
        return sum(replies[:-1])

    @closes_channel
    def queue_delete(
        self,
        queue: str = "",
        if_unused: bool = False,
        if_empty: bool = False,
        nowait: bool = False,
    ) -> int:
        """Delete a queue and its bindings; return how many messages it had.  May switch.

        Raises:
            PreconditionFailed: *if_unused*, and this connection consumes from it; *if_empty*, and
                it is not.
            ResourceLocked: it is exclusive to another connection.
        """
        link = self.connection
        method = Method.QUEUE_DELETE
        name = self._queue_name(queue)
        if link.directory.known(name) is None and link.directory.find(name) is None:
            link.unbind_queue(name)
            return 0
        link.directory.check(name, method)
        feed = link.feeds.get(name)
        consumers = list(feed.consumers) if feed is not None else []
        if if_unused or if_empty:
            messages, consumed = link.directory.counts(name)
            if if_unused and consumed:
                raise in_use("queue", name, self.virtual_host, method)
            if if_empty and messages:
                raise not_empty(name, self.virtual_host, method)
        for consumer in consumers:
            consumer.channel.cancelled_by_broker(consumer)
        return link.directory.drop(name)

    def after_reply_message_received(self, queue: str) -> None:
        """Nothing to do: a reply queue lives until its owner deletes it."""

    def _warn_undeliverable(self, exchange: str, routing_key: str, queue: str) -> None:
        warnings.warn(
            UndeliverableWarning(
                f"no queue of exchange {exchange!r} for routing key {routing_key!r}: the message "
                f"went to {queue!r}"
            ),
            stacklevel=5,
        )
