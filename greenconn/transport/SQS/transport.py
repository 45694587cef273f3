"""The transport over Amazon SQS, and its channels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, cast

import botocore
from botocore.exceptions import BotoCoreError

from greenconn.abc import DeadlineLike
from greenconn.broker.channel import StoreChannel
from greenconn.broker.entities import SharedEntities
from greenconn.broker.link import StoreLink
from greenconn.broker.port import Entry
from greenconn.broker.publishing import StorePublisher
from greenconn.broker.transport import StoreTransport
from greenconn.green import fork
from greenconn.options import known_options
from greenconn.transport.refusal import Method, in_use
from greenconn.transport.SQS.account import DEFAULT_REGION, Accounts
from greenconn.transport.SQS.exceptions import REFUSED, ServiceBusy
from greenconn.transport.SQS.options import HYPHENATED, SQSOptions
from greenconn.transport.SQS.queues import aws_name
from greenconn.transport.SQS.store import SqsStore
from greenconn.transport.SQS.topics import exchange_of, topic_entry
from greenconn.transport.virtual.entities import PREDECLARED
from greenconn.transport.virtual.publishing import Envelope, warn_of_message
from greenconn.transport.virtual.state import Binding, Exchange

logger = logging.getLogger("greenconn.transport.SQS")


class Publisher(StorePublisher):
    """The publisher of a channel to SQS; it warns of priorities, which SQS does not have."""

    def _target(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: DeadlineLike | None,
    ) -> Sequence[Entry] | None:
        if message["properties"].get("priority"):
            warn_of_message(self._channel, message, exchange, routing_key)
        return super()._target(message, exchange, routing_key, mandatory, deadline)


class SqsEntities(SharedEntities):
    """Exchanges, queues and bindings of a channel to SQS: fan-out exchanges are topics of SNS.

    Where an exchange is a topic, the topic stands in its bindings for all queues that subscribed, in
    whatever process: a message that is routed there is published once, and SNS copies it.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._ask = channel.connection.ask
        self._options = channel._options
        self._topics = channel._store.topics

    # -- exchanges

    def declare_exchange(
        self,
        exchange: str,
        type: str,
        *,
        passive: bool,
        durable: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        """Make an exchange, or check that the existing one is the same.  May switch.

        A fan-out exchange is a topic of SNS, if ``supports_fanout`` and the account let it.

        Raises:
            NotAllowed: it is of type ``fanout``, and ``supports_fanout`` is False.
            As :meth:`SharedEntities.declare_exchange`; with ``supports_fanout`` what SNS refuses, too.
        """
        is_fanout = type == "fanout" and not passive
        if is_fanout:
            self._topics.check()
        super().declare_exchange(
            exchange,
            type,
            passive=passive,
            durable=durable,
            auto_delete=auto_delete,
            arguments=arguments,
        )
        if is_fanout:
            self._begin_topic(exchange or "amq.fanout")

    def _begin_topic(self, name: str) -> None:
        """Let a fan-out exchange be a topic."""
        if self.has_topic(name):
            return
        try:
            self._ask("creating a topic", self._topics.arn, name)
        except REFUSED as exc:
            if self._options.supports_fanout:
                if name not in PREDECLARED:
                    self.state.delete(name)
                raise
            logger.warning(
                "exchange %r has no SNS topic: it reaches only queues that this process binds (%s)",
                name,
                exc,
            )
        else:
            if name in self.state.exchanges:
                self.state.bind(_topic_of(name))

    def has_topic(self, name: str) -> bool:
        """Return whether an exchange is a topic."""
        exchange = self.state.exchanges.get(name)
        return exchange is not None and _topic_of(name) in exchange.bindings

    def delete_exchange(self, exchange: str, if_unused: bool) -> None:
        """Delete an exchange and its topic; one that is not there is no error.  May switch."""
        if not self.has_topic(exchange) or exchange in PREDECLARED:
            super().delete_exchange(exchange, if_unused)
            return
        topics = self._topics
        if if_unused and self._ask("listing subscriptions", topics.count, exchange):
            raise in_use("exchange", exchange, self._channel.virtual_host, Method.EXCHANGE_DELETE)
        super().delete_exchange(exchange, False)
        self._ask("deleting a topic", topics.drop, exchange)

    # -- bindings

    def _source(self, binding: Binding, method: Method) -> Exchange | None:
        """Return the exchange of a binding that is a subscription; None: it is none."""
        exchange = self._exchange(binding.source, method)
        if exchange.type != "fanout" or binding.to_exchange:
            return None
        if exchange.name in PREDECLARED and self._options.supports_fanout is not False:
            self._begin_topic(exchange.name)
        return exchange if self.has_topic(exchange.name) else None

    def _bind(self, binding: Binding, method: Method) -> None:
        exchange = self._source(binding, method)
        if exchange is None:
            super()._bind(binding, method)
            return
        subscribe = self._topics.subscribe
        self._ask("subscribing a queue", subscribe, exchange.name, binding.destination)

    def _unbind(self, binding: Binding) -> None:
        if binding.to_exchange or not self.has_topic(binding.source):
            super()._unbind(binding)
            return
        unsubscribe = self._topics.unsubscribe
        self._ask("unsubscribing a queue", unsubscribe, binding.source, binding.destination)

    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """``(queue, exchange, routing key)`` of every binding to a queue that was made here."""
        for queue, exchange, key in super().list_bindings():
            if exchange_of(queue) is None:
                yield queue, exchange, key
        for queue, exchange in self._topics.subscribed():
            yield queue, exchange, ""


class Channel(StoreChannel[StoreLink]):
    """A channel.  Any greenlet of its connection's hub may call any method at any time."""

    entities: SqsEntities
    entities_class = SqsEntities
    # SQS has no priorities.
    supported_arguments = replace(
        StoreChannel.supported_arguments,
        queue=StoreChannel.supported_arguments.queue - {"x-max-priority"},
        message=StoreChannel.supported_arguments.message - {"priority"},
    )
    #: The service counts in seconds.
    has_whole_delays: Final = True
    # Kombu's names.
    default_region: ClassVar[str] = DEFAULT_REGION
    default_visibility_timeout: ClassVar[int] = 1800
    default_wait_time_seconds: ClassVar[int] = 10
    domain_format: ClassVar[str] = "kombu%(vhost)s"

    @property
    def _store(self) -> SqsStore:
        return cast(SqsStore, self.connection.store)

    @property
    def _options(self) -> SQSOptions:
        return cast(SQSOptions, self.connection.options)

    @property
    def supports_fanout(self) -> bool:
        """Whether there may be fan-out exchanges."""
        return self._options.supports_fanout is not False

    def entity_name(self, name: str) -> str:
        """Return the name at AWS of a queue or exchange (kombu's)."""
        return aws_name(name)

    def canonical_queue_name(self, queue_name: str) -> str:
        """Return the name at AWS of a queue or exchange, prefix and all (kombu's)."""
        return aws_name(self._options.queue_name_prefix + queue_name)

    def has_dead_letters(
        self, queue: str, routing_key: str = "", headers: Mapping[str, Any] | None = None
    ) -> bool:
        """Return whether a rejected message of *queue* is stored in another queue.  May switch.

        A redrive policy of SQS does so, when the message was redelivered often enough.
        """
        if super().has_dead_letters(queue, routing_key, headers):
            return True
        ask = self.connection.ask
        return bool(ask("looking for a redrive policy", self._store.redrives, queue))

    def remove_stale_sns_subscriptions(self, exchange_name: str) -> int:
        """End the subscriptions of queues that are gone; return how many (kombu's).  May switch."""
        if not self.entities.has_topic(exchange_name):
            return 0
        return self.connection.ask("cleaning up a topic", self._store.topics.clean, exchange_name)


def _topic_of(exchange: str) -> Binding:
    return Binding(exchange, topic_entry(exchange), "")


class Transport(StoreTransport):
    """``sqs://``: kombu's names and messages, requests of ten, leases that are renewed.

    ``transport_options`` are those of :class:`~greenconn.transport.SQS.options.SQSOptions`.
    """

    Channel = Channel
    Publisher = Publisher
    Options: ClassVar[type[SQSOptions]] = SQSOptions
    driver_type = "sqs"
    driver_name = "sqs"
    default_port = None
    wait_time_seconds = 0
    connection_errors = (*StoreTransport.connection_errors, BotoCoreError)
    channel_errors = (*StoreTransport.channel_errors, BotoCoreError, ServiceBusy)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._accounts: Accounts | None = None
        self._sqs_options: SQSOptions | None = None

    def driver_version(self) -> str:
        return str(botocore.__version__)

    @property
    def options(self) -> SQSOptions:
        """The transport options, read when they are first needed; kombu's spelling is taken too.

        Raises:
            ValueError: one has a value that cannot be.
        """
        if self._sqs_options is None:
            self._sqs_options = self._read_options()
        return self._sqs_options

    def _read_options(self) -> SQSOptions:
        given = {
            HYPHENATED.get(name, name): value
            for name, value in (self.client.transport_options or {}).items()
        }
        return known_options(SQSOptions, given, self.client.as_uri(), logger)

    def make_store(self, wake: Callable[[str | None], None]) -> SqsStore:
        """Return the store of one link; accounts outlive it."""
        if self._accounts is None:
            self._accounts = Accounts(self.client, self.options)
            fork.register(self._accounts)
        return SqsStore(self.client, wake, self._accounts, self.options)

    def place(self) -> str:
        """Return a key that is equal for connections to the same queues."""
        client, options = self.client, self.options
        where = options.endpoint_url or f"{client.hostname}:{client.port}"
        return f"{where} {options.region} {client.userid} {options.queue_name_prefix}"

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """No host: then it is AWS."""
        return {"hostname": None}
