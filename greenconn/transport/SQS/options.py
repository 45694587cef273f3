"""The transport options of SQS: kombu's names, and ours behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from greenconn.broker.options import StoreOptions
from greenconn.checks import check_count, check_seconds, check_type, invalid
from greenconn.url import mask_secrets

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


#: The system attribute that says how often a message was taken.
RECEIVE_COUNT: Final = "ApproximateReceiveCount"


def _names(given: Any, *always: str) -> list[str]:
    names = [] if given is None or isinstance(given, str) else [str(each) for each in given]
    if any(name.lower() == "all" for name in names):
        return ["All"]
    return sorted({*names, *always})
