"""The figures of a broker's queues, and the trends that follow from several looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from greenconn.exceptions import ManagementError, NotFound, OperationalError, ResourceLocked

if TYPE_CHECKING:
    from greenconn.connection import Connection

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
