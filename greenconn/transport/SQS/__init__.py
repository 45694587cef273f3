"""The transport over Amazon SQS (kombu's path and spelling), its options and its channels."""

from __future__ import annotations

from greenconn.importing import needed

needed("botocore", "botocore", "sqs")

# ruff: noqa: E402 - these import botocore
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar, Final, cast
from urllib.parse import urlsplit

import botocore
from botocore.exceptions import BotoCoreError

from greenconn.broker.channel import StoreChannel
from greenconn.broker.entities import SharedEntities
from greenconn.broker.envelope import Envelope
from greenconn.broker.errors import Method, in_use
from greenconn.broker.exchanges import PREDECLARED, Binding, Exchange, ExchangeDeclaration
from greenconn.broker.link import StoreLink, StoreOptions, StoreTransport
from greenconn.broker.port import Entry
from greenconn.broker.publishing import KnownRoute, StorePublisher, warn_of_message
from greenconn.checks import check_count, check_seconds, check_type, invalid
from greenconn.green.deadline import Deadline
from greenconn.green.hub import forget_at_fork
from greenconn.options import known_options
from greenconn.transport.SQS.queues import SQS_MAX_MESSAGES, aws_name, exchange_of, topic_entry
from greenconn.transport.SQS.service import (
    DEFAULT_REGION,
    REFUSED,
    AccessDeniedQueueException,
    Accounts,
    DoesNotExistQueueException,
    InvalidQueueException,
    ServiceBusy,
    UndefinedQueueException,
)
from greenconn.transport.SQS.store import MAX_DELAY_SECONDS, RECEIVE_COUNT, SqsStore
from greenconn.url import mask_secrets

__all__ = [
    "MAX_DELAY_SECONDS",
    "SQS_MAX_MESSAGES",
    "AccessDeniedQueueException",
    "Channel",
    "DoesNotExistQueueException",
    "InvalidQueueException",
    "SQSOptions",
    "Transport",
    "UndefinedQueueException",
]


logger = logging.getLogger("greenconn.transport.SQS")


#: Kombu's spelling of options -> ours.
HYPHENATED: Final[Mapping[str, str]] = {
    "sqs-creation-attributes": "sqs_creation_attributes",
    "client-config": "client_config",
}

#: What SQS allows at most: seconds of a long poll, of a delay, of a visibility timeout.
LONGEST_POLL: Final = 20
LONGEST_VISIBILITY: Final = 43200


class SQSOptions(StoreOptions):
    """The options of a connection to SQS.

    A ``lease`` counts in whole seconds, and can be renewed for the 12 hours that SQS allows.
    """

    hidden = frozenset(
        {
            "client_config",
            "endpoint_url",
            "predefined_exchanges",
            "predefined_queues",
            "session_token",
        }
    )

    # -- where

    region: str | None = None
    """The AWS region; None is the region of the environment or of AWS's configuration files, or
    ``us-east-1``."""

    endpoint_url: str | None = None
    """URL of SQS (and SNS), for emulators and private endpoints; None is made of the host and port
    of the URL, or of the region if the URL has no host."""

    is_secure: bool | None = None
    """Whether to use HTTPS; None does for AWS, and for a host in the URL with ``ssl`` only
    (kombu's)."""

    port: int | None = None
    """Port of the host in the URL, if the URL has none (kombu's)."""

    client_config: Mapping[str, Any] | None = None
    """Settings of ``botocore.config.Config``: FIPS and dual-stack endpoints, ``connect_timeout``
    and ``read_timeout`` in seconds (kombu's ``client-config``)."""

    # -- who

    session_token: str | None = None
    """Session token of a temporary access key in the URL."""

    sts_role_arn: str | None = None
    """ARN of a role to assume; requests are signed with its temporary credentials (kombu's)."""

    sts_token_timeout: int = 900
    """Seconds for which these credentials are valid; at least 900 (kombu's)."""

    sts_token_buffer_time: float = 0
    """Seconds before they expire at which credentials are renewed; less than their validity
    (kombu's)."""

    # -- queues

    queue_name_prefix: str = ""
    """Prefix of the names of queues and topics at AWS (kombu's)."""

    predefined_queues: Mapping[str, Mapping[str, Any]] | None = None
    """Queue names -> mappings with ``url``, and optionally ``region``, ``access_key_id``,
    ``secret_access_key``, ``session_token``, ``backoff_policy`` and ``backoff_tasks``.  With it
    other queues cannot be used, and none is created or deleted (kombu's)."""

    sqs_creation_attributes: Mapping[str, str] | None = None
    """Attributes of queues that are created here (kombu's ``sqs-creation-attributes``)."""

    queue_tags: Mapping[str, str] | None = None
    """Tags of queues that are created here (kombu's)."""

    visibility_timeout: float | None = 1800
    """Seconds; the attribute of queues that are created here, for other kinds of clients.  Our
    consumers use *lease* (kombu's)."""

    # -- messages

    sqs_base64_encoding: bool = True
    """Whether messages are sent as base64, like kombu; received messages may be either."""

    body_encoding: str | None = "base64"
    """Encoding of bodies in the JSON envelope; None stores text as it is (kombu's)."""

    fetch_message_attributes: Any = None
    """System attributes to receive, as a list, or a mapping with ``MessageSystemAttributeNames``
    and ``MessageAttributeNames`` (kombu's).  The receive count is always included."""

    max_message_size: int = 1024 * 1024
    """Maximum bytes of a message, including envelope and base64.  SQS accepts 1 MiB since August
    2025; queues and emulators may have a lower limit."""

    # -- consuming

    wait_time_seconds: float = 10
    """Seconds of a long poll; at most 20 (kombu's)."""

    get_wait_time: int = 1
    """Seconds that ``basic_get`` waits at SQS.  With 0 SQS asks only some of its servers, and may
    miss messages."""

    poll_connections: int = 50
    """Maximum number of concurrent polls; with more queues they take turns."""

    # -- fan-out

    supports_fanout: bool | None = None
    """Whether exchanges of type ``fanout`` are topics of SNS: True requires that, False has no such
    exchanges.  With None they are topics if the account permits that; otherwise they reach the
    queues that were bound by this process (kombu's)."""

    predefined_exchanges: Mapping[str, Mapping[str, Any]] | None = None
    """Exchange names -> mappings with the ``arn`` of a topic, and optionally ``region``,
    ``access_key_id``, ``secret_access_key``.  With it other topics cannot be used, and none is
    created (kombu's)."""

    # -- requests

    retries: int = 4
    """Number of retries, with increasing delays, of a request that SQS throttled or failed to
    serve."""

    polling_interval: float | None = None
    """Seconds; accepted for compatibility with kombu and ignored: SQS has long polls."""

    def __post_init__(self) -> None:
        StoreOptions.__post_init__(self)
        check_type(self, str, "queue_name_prefix")
        check_type(self, str, "region", "endpoint_url", "session_token", optional=True)
        check_type(self, str, "sts_role_arn", "body_encoding", optional=True)
        check_type(self, Mapping, "client_config", "predefined_queues", optional=True)
        check_type(self, Mapping, "sqs_creation_attributes", "queue_tags", optional=True)
        check_type(self, Mapping, "predefined_exchanges", optional=True)
        check_type(self, bool, "is_secure", "supports_fanout", optional=True)
        check_type(self, bool, "sqs_base64_encoding")
        check_count(self, "port", least=1, most=65535)
        for name in ("sts_token_timeout", "get_wait_time"):
            if isinstance(value := getattr(self, name), timedelta):
                object.__setattr__(self, name, int(value.total_seconds()))  # whole ones, for AWS
        check_count(self, "sts_token_timeout", least=900, optional=False)
        check_count(self, "poll_connections", least=1, optional=False)
        check_count(self, "retries", optional=False)
        check_count(self, "get_wait_time", most=LONGEST_POLL, optional=False)
        check_seconds(self, "sts_token_buffer_time", "wait_time_seconds", optional=False)
        check_seconds(self, "visibility_timeout", "polling_interval")
        self._check_limits()
        self._check_queues()

    def _check_limits(self) -> None:
        if self.wait_time_seconds > LONGEST_POLL:
            raise invalid(self, "wait_time_seconds", f"at most {LONGEST_POLL} s (limit of SQS)")
        for name in ("lease", "visibility_timeout"):
            value = getattr(self, name)
            if value is not None and value > LONGEST_VISIBILITY:
                wanted = f"at most {LONGEST_VISIBILITY} s (limit of SQS)"
                raise invalid(self, name, wanted)
        if self.lease < 1:
            raise invalid(self, "lease", "at least 1 s, as SQS counts in whole seconds")
        if self.sts_token_buffer_time >= self.sts_token_timeout:
            wanted = f"less than sts_token_timeout ({self.sts_token_timeout} s)"
            raise invalid(self, "sts_token_buffer_time", wanted)
        fetch = self.fetch_message_attributes
        if not (fetch is None or isinstance(fetch, (str, Sequence, Mapping))):
            wanted = "a list of names, a mapping with lists, or None"
            raise invalid(self, "fetch_message_attributes", wanted)

    def _check_queues(self) -> None:
        if self.endpoint_url:
            _check_url("endpoint_url", self.endpoint_url)
        for name, queue in (self.predefined_queues or {}).items():
            url = _mapping("predefined_queues", name, queue).get("url")
            if not isinstance(url, str) or "://" not in url:
                raise ValueError(f"predefined_queues: {name!r} must have a 'url'")
            _check_url(f"predefined_queues: the URL of {name!r}", url)
            if url.endswith(".fifo") != name.endswith(".fifo"):
                raise ValueError(
                    f"predefined_queues: the name {name!r} and its URL {mask_secrets(url)!r} must both "
                    f"end with '.fifo', or neither"
                )
        for name, exchange in (self.predefined_exchanges or {}).items():
            if not isinstance(_mapping("predefined_exchanges", name, exchange).get("arn"), str):
                raise ValueError(f"predefined_exchanges: {name!r} must have an 'arn'")

    @property
    def system_attributes(self) -> list[str]:
        """Names of the system attributes to ask for."""
        fetch = self.fetch_message_attributes
        if isinstance(fetch, Mapping):
            fetch = fetch.get("MessageSystemAttributeNames")
        return _names(fetch, RECEIVE_COUNT)

    @property
    def message_attributes(self) -> list[str]:
        """Names of the message attributes to ask for."""
        fetch = self.fetch_message_attributes
        return _names(fetch.get("MessageAttributeNames")) if isinstance(fetch, Mapping) else []


def _check_url(what: str, url: str) -> None:
    """Check that *url* leads to a host, with no login in it, which requests do not need.

    Raises:
        ValueError: it does not; says so with the password masked.
    """
    try:
        parts = urlsplit(url)
        is_valid = parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # its text quotes a piece of the URL
        is_valid = False
    if not is_valid:
        raise ValueError(
            f"{what} must be a URL without user name and password, got {mask_secrets(url)!r}"
        )


def _mapping(option: str, name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{option}: {name!r} must be a dict, got a {type(value).__name__}")
    return value


def _names(given: Any, *always: str) -> list[str]:
    names = [] if given is None or isinstance(given, str) else [str(each) for each in given]
    if any(name.lower() == "all" for name in names):
        return ["All"]
    return sorted({*names, *always})


class Publisher(StorePublisher):
    """The publisher of a channel to SQS; it warns of priorities, which SQS does not have."""

    def _target(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> Sequence[Entry] | KnownRoute | None:
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
        self, exchange: str, declared: ExchangeDeclaration, *, passive: bool
    ) -> None:
        """Make an exchange, or check that the existing one is the same.  May switch.

        A fan-out exchange is a topic of SNS, if ``supports_fanout`` and the account let it.

        Raises:
            NotAllowed: it is of type ``fanout``, and ``supports_fanout`` is False.
            As :meth:`SharedEntities.declare_exchange`; with ``supports_fanout`` what SNS refuses, too.
        """
        is_fanout = declared.type == "fanout" and not passive
        if is_fanout:
            self._topics.check()
        super().declare_exchange(exchange, declared, passive=passive)
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

    ``transport_options`` are those of :class:`~greenconn.transport.SQS.SQSOptions`.
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
            forget_at_fork(self._accounts)
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
