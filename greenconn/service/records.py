"""Messages as JSON records, as a user writes them, and the figures of queues.

``greenconn consume --json`` prints records, and ``publish --jsonl`` publishes them.  A record has the
address, content type, content encoding, headers, properties and body of a message.  A body of JSON is a
JSON value in it, text is a string.  Bytes, and values of headers and properties for which JSON has no
type, are typed values, as :mod:`greenconn.jsoncodec` writes them.

The figures of a broker's queues show trends, which follow from several looks.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from greenconn.encoding import charset, safe_repr
from greenconn.exceptions import ManagementError, NotFound, OperationalError, ResourceLocked
from greenconn.jsoncodec import dumps as json_dumps
from greenconn.jsoncodec import encode, loads
from greenconn.message import Message
from greenconn.publishing.publisher import PROPERTIES
from greenconn.serialization import dumps
from greenconn.worker.failures import NOT_COPIED

if TYPE_CHECKING:
    from greenconn.connection import Connection


JSON: Final = "application/json"
#: The properties of a record.
PROPERTY_NAMES: Final = PROPERTIES | {"delivery_mode", "expiration", "priority"}
#: The fields of a record; only the body is required.  ``redelivered`` is ignored when it is published.
FIELDS: Final = frozenset(
    {
        "exchange",
        "routing_key",
        "redelivered",
        "content_type",
        "content_encoding",
        "properties",
        "headers",
        "body",
    }
)
#: Control characters and halves of characters, which JSON may have without an escape.
_controls: Final = re.compile("[\x7f-\x9f\ud800-\udfff]")


def record_of(message: Message) -> dict[str, Any]:
    """Return a received message as a record."""
    info, properties = message.delivery_info, message.properties
    return {
        "exchange": info.get("exchange") or "",
        "routing_key": info.get("routing_key") or "",
        "redelivered": bool(info.get("redelivered")),
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "properties": {
            name: each
            for name, each in properties.items()
            if each is not None and (name == "priority" or name not in NOT_COPIED)
        },
        "headers": {name: each for name, each in message.headers.items() if each is not None},
        "body": body_of(message),
    }


def line_of(message: Message) -> str:
    """Return a received message as a record in one line."""
    return json_line(record_of(message), json_dumps)


def json_line(value: Any, dumps: Callable[..., str]) -> str:
    """Return a value as JSON in one line, without control characters, which a terminal might obey.

    Arguments:
        dumps: as ``json.dumps``.
    """
    try:
        text = dumps(value, ensure_ascii=False)
    except TypeError:
        try:
            text = dumps(_with_text_keys(value), ensure_ascii=False)
        except (TypeError, RecursionError):
            text = dumps(safe_repr(value))
    return _controls.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _with_text_keys(value: Any) -> Any:
    """Return a value with text as the keys of all its tables; those of AMQP may be bytes."""
    if isinstance(value, dict):
        return {
            key.decode("utf-8", "backslashreplace")
            if isinstance(key, bytes)
            else key: _with_text_keys(each)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(each) for each in value]
    return value


def body_of(message: Message) -> Any:
    """Return the body of a message as a record has it: a JSON value, text, or bytes."""
    body: Any = message.body
    if not isinstance(body, (str, bytes, bytearray, memoryview)):
        return body  # of an envelope that cannot be read, or nothing
    if not isinstance(body, str):
        body = bytes(body)
    if _is_json(message.content_type):
        with suppress(ValueError):  # it says that it is JSON, and is not
            value = loads(body)
            if not isinstance(value, bytes):  # which would stand for a body that is not JSON
                return value
        return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    if isinstance(body, str):
        return body
    encoding: Any = message.content_encoding or "utf-8"
    known = charset(encoding) if isinstance(encoding, str) else None
    with suppress(UnicodeError, TypeError):
        text = body.decode(known)
        if text.encode(known) == body:
            return text
    return body


def message_of(record: Any) -> Message:
    """Return the message of a record.

    Raises:
        ValueError: it is no record; names the field.
    """
    if not isinstance(record, Mapping) or "body" not in record:
        raise ValueError(
            f'a message must be an object with a "body", got {type(record).__name__} {record!r:.60}'
        )
    if unknown := record.keys() - FIELDS:
        raise ValueError(f"unknown field {min(unknown)!r}: known are {', '.join(sorted(FIELDS))}")
    body, kind = record["body"], record.get("content_type")
    encoding = record.get("content_encoding")
    if isinstance(body, bytes):
        if "content_type" not in record:
            kind, encoding = "application/data", encoding or "binary"
    elif "content_type" not in record:
        kind, encoding, body = dumps(body)
    elif _is_json(kind):
        body = encode(body).encode("utf-8")
    elif not isinstance(body, str):
        raise ValueError(
            f"the body of a message of content_type {kind!r} must be text or bytes, got "
            f"{type(body).__name__}"
        )
    else:
        known = charset(encoding or "utf-8")
        if known is None:
            raise ValueError(f"content_encoding {encoding!r} must be that of text, as the body is")
        body = body.encode(known)
    properties = _table(record, "properties")
    if unknown := properties.keys() - PROPERTY_NAMES:
        raise ValueError(
            f"unknown property {min(unknown)!r}: known are {', '.join(sorted(PROPERTY_NAMES))}"
        )
    address = {name: record.get(name) or "" for name in ("exchange", "routing_key")}
    message = Message(
        body,
        content_type=kind,
        content_encoding=encoding,
        delivery_info=address,
        properties=properties,
    )
    message.headers = _table(record, "headers")  # the body is not compressed, whatever they say
    return message


def _is_json(content_type: Any) -> bool:
    return str(content_type).partition(";")[0] == JSON


def _table(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {type(value).__name__} {value!r:.60}")
    return value


#: Rates of RabbitMQ's statistics by which a message leaves a queue for good.
DEPARTURES: Final = ("ack", "deliver_no_ack", "get_no_ack")
#: Looks that a trend shows.
TREND: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueFigures:
    """The figures of one queue; None: the broker does not tell."""

    name: str
    kind: str | None = None  #: classic, quorum, stream
    durable: bool | None = None
    ready: int | None = None  #: messages that wait
    unacked: int | None = None  #: messages that consumers hold
    consumers: int | None = None
    in_rate: float | None = None  #: messages a second that are published to it
    out_rate: float | None = None  #: messages a second that leave it for good


class QueueReader:
    """Reads the figures of queues.

    RabbitMQ's management API lists them and knows rates and unacknowledged messages; its figures are
    up to 5 seconds old.  Elsewhere the channel lists them, and a passive declaration tells the rest.

    Arguments:
        connection: an open one.
        names: of the queues, or patterns such as ``mail.*``; empty: all.
        timeout: seconds for a request to the management API.
    """

    def __init__(self, connection: Connection, names: Sequence[str], timeout: float) -> None:
        self._connection = connection
        self._patterns = [each for each in names if _is_pattern(each)]
        self._names = [each for each in names if not _is_pattern(each)]
        self._vhost = connection.virtual_host or "/"
        self._channel: Any = None
        is_rabbitmq = connection.transport.driver_type == "amqp"
        self._manager: Any = connection.get_manager(timeout=timeout) if is_rabbitmq else None

    def read(self, *, must_exist: bool = False) -> list[QueueFigures]:
        """Return the figures of the queues, by name.  May switch.

        Arguments:
            must_exist: a queue that was named must be there; else it is left out.

        Raises:
            NotFound: *must_exist*, and it is not there.
            ValueError: the broker cannot list its queues, so they must be named.
        """
        found: dict[str, QueueFigures] = {}
        if self._patterns or not self._names:
            found.update((each.name, each) for each in self._listed())
        for name in self._names:
            try:
                found[name] = self._counted(self._described(name))
            except NotFound:
                if must_exist:
                    raise
        return [found[name] for name in sorted(found)]

    def _listed(self) -> list[QueueFigures]:
        """Return the figures of all queues that match a pattern."""
        if self._manager is not None:
            rows = [each for each in self._reports() if self._matches(each["name"])]
            # The statistics do not have a new queue yet.
            return [
                each if each.ready is not None else self._seen(each) for each in map(_figures, rows)
            ]
        try:
            names = self._open_channel().list_queues()
        except NotImplementedError:
            raise ValueError(
                f"{self._connection.transport.driver_name} cannot list its queues: name them"
            ) from None
        counts = self._open_channel().count_queues([each for each in names if self._matches(each)])
        return [
            QueueFigures(name=name, ready=ready, consumers=consumers)
            for name, (ready, consumers) in counts.items()
        ]

    def _reports(self) -> Sequence[Mapping[str, Any]]:
        try:
            reports: Sequence[Mapping[str, Any]] = self._manager.get_queues(self._vhost)
        except ManagementError:
            raise
        except OperationalError as exc:
            raise type(exc)(f"{exc}, or name the queues") from exc
        return reports

    def _matches(self, name: str) -> bool:
        patterns = self._patterns
        return not patterns or any(fnmatchcase(name, each) for each in patterns)

    def _described(self, name: str) -> QueueFigures:
        """Return what the management API tells of a queue; without it, its name."""
        if self._manager is None:
            return QueueFigures(name=name)
        try:
            return _figures(self._manager.get_queue(self._vhost, name))
        except ManagementError:
            pass  # the user may not see it, or it is not there: its declaration will say so
        except OperationalError:
            self._manager = None  # the plugin is not enabled
        return QueueFigures(name=name)

    def _seen(self, figures: QueueFigures) -> QueueFigures:
        """Return *figures* with the present counts, where this connection may use the queue."""
        try:
            return self._counted(figures)
        except (NotFound, ResourceLocked):
            return figures  # gone meanwhile, or exclusive to another connection

    def _counted(self, figures: QueueFigures) -> QueueFigures:
        """Return *figures* with the present counts."""
        found = self._open_channel().queue_declare(figures.name, passive=True)
        return replace(figures, ready=found.message_count, consumers=found.consumer_count)

    def _open_channel(self) -> Any:
        # A refusal closes it.
        if self._channel is None or not self._channel.is_open:
            self._channel = self._connection.channel()
        return self._channel


def _is_pattern(name: str) -> bool:
    return any(each in name for each in "*?[")


def _figures(report: Mapping[str, Any]) -> QueueFigures:
    """Return the figures in a report of the management API."""
    statistics: Mapping[str, Any] = report.get("message_stats") or {}

    def rate(name: str) -> float:
        return float((statistics.get(f"{name}_details") or {}).get("rate") or 0.0)

    is_counted = "messages_ready" in report
    return QueueFigures(
        name=report["name"],
        kind=report.get("type"),
        durable=report.get("durable"),
        ready=report.get("messages_ready"),
        unacked=report.get("messages_unacknowledged"),
        consumers=report.get("consumers"),
        in_rate=rate("publish") if is_counted else None,
        out_rate=sum(map(rate, DEPARTURES)) if is_counted else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueTrend:
    """The figures of one queue, and what follows from earlier ones."""

    figures: QueueFigures
    change: float | None  #: messages a second by which it grows; None at the first look
    lag: float | None  #: seconds in which all leave at the present rate; None: they do not
    totals: Sequence[int]  #: messages at the last looks, the latest at the end


class Monitor:
    """Computes the trends of queues.

    Arguments:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        #: Queue -> the times and messages of the last looks.
        self._looks: dict[str, deque[tuple[float, int]]] = {}

    def trends(self, figures: Iterable[QueueFigures]) -> list[QueueTrend]:
        """Return the trends of queues whose figures were just read."""
        now = self._clock()
        before, self._looks = self._looks, {}
        return [self._trend(each, before.get(each.name), now) for each in figures]

    def _trend(
        self, figures: QueueFigures, looks: deque[tuple[float, int]] | None, now: float
    ) -> QueueTrend:
        looks = self._looks[figures.name] = looks or deque(maxlen=TREND)
        total = (figures.ready or 0) + (figures.unacked or 0)
        change = None
        if looks and now > looks[-1][0]:
            then, before = looks[-1]
            change = (total - before) / (now - then)
        looks.append((now, total))
        return QueueTrend(
            figures=figures,
            change=change,
            lag=_lag(total, figures.out_rate, change),
            totals=[each for _, each in looks],
        )


def _lag(total: int, out_rate: float | None, change: float | None) -> float | None:
    if not total:
        return 0.0
    # Without the rate at which they leave, as many leave at least as the queue gets shorter.
    leaving = out_rate if out_rate is not None else max(0.0, -(change or 0.0))
    return total / leaving if leaving else None
