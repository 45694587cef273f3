"""Prometheus: metrics of messages, connections, consumers and pools, by ``prometheus_client``.

::

    import greenconn.contrib.prometheus

    greenconn.contrib.prometheus.instrument()
    application = greenconn.contrib.prometheus.wsgi_app()   # GET /metrics, in this process

Counters and histograms are written as messages are published and handled.  Gauges are read from
connections, consumers and pools when they are asked for, and cost nothing between: they are those of the
thread that asks.

Where several processes share ``PROMETHEUS_MULTIPROC_DIR`` (gunicorn), one answers for all of them.  It
cannot ask the others, so each writes its gauges every :data:`INTERVAL` seconds; and in
``gunicorn.conf.py`` :func:`child_exit` removes those of a worker that is gone.

Beside this module are a dashboard for Grafana, :data:`DASHBOARD`, and rules for alerts, :data:`ALERTS`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeAlias

from gevent import get_hub, getcurrent
from prometheus_client import REGISTRY as DEFAULT_REGISTRY
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from greenconn.green.hub import yield_to_hub
from greenconn.green.supervisor import Ticker
from greenconn.listeners import (
    ConfirmEvent,
    ConnectEvent,
    DeadLetterEvent,
    DisconnectEvent,
    HandledEvent,
    HubBlockedEvent,
    Listener,
    PoolWaitEvent,
    RetryEvent,
    UnblockedEvent,
    add_listener,
    remove_listener,
)
from greenconn.resource import all_pools
from greenconn.session.session import Session, SessionState, sessions_in_use
from greenconn.worker.consumer import ConsumerGreenlet, failures, running_consumers
from greenconn.worker.lifecycle import ConsumerState

__all__ = [
    "ALERTS",
    "BUCKETS",
    "DASHBOARD",
    "INTERVAL",
    "Metrics",
    "child_exit",
    "instrument",
    "wsgi_app",
]

WSGIApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: Files for Prometheus and Grafana.
ALERTS: Final = Path(__file__).with_name("alerts.yml")
DASHBOARD: Final = Path(__file__).with_name("dashboard.json")

#: Upper bounds of histograms, in seconds.
BUCKETS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    60.0,
)
#: Seconds between two writes of the gauges, where several processes share a directory.
INTERVAL: Final = 5.0
#: Queues and exchanges with series of their own; what comes later is ``other``.
MOST_SERIES: Final = 1000
OTHER: Final = "other"
#: Beginnings of names that are used once: of queues that RabbitMQ has named, and of direct replies.
TEMPORARY: Final = ("amq.gen-", "amq.rabbitmq.reply-to")

#: Names -> values of labels -> the figure.
Figures: TypeAlias = "dict[str, dict[tuple[str, ...], float]]"

#: Names -> text, labels, and how those of several processes are joined.
GAUGES: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "connections": ("Connections in use, by state.", ("broker", "state"), "sum"),
    "unacked": ("Deliveries that are not acknowledged.", ("broker",), "sum"),
    "unconfirmed": ("Publishes that the broker has not confirmed.", ("broker",), "sum"),
    "inbox_bytes": ("Bytes that wait for consumers without a prefetch.", ("broker",), "sum"),
    "consumers": ("Consumers, by state.", ("consumer", "state"), "sum"),
    "consumer_in_flight": ("Messages that handlers have begun.", ("consumer",), "sum"),
    "consumer_concurrency": ("Handlers that may run at once.", ("consumer",), "sum"),
    "consumer_last_delivery_age_seconds": (
        "Seconds since the last delivery.",
        ("consumer",),
        "min",
    ),
    "pool_in_use": ("Members of a pool that are lent.", ("pool",), "sum"),
    "pool_limit": ("Members that a pool may have.", ("pool",), "sum"),
    "pool_waiting": ("Greenlets that wait for a member of a pool.", ("pool",), "sum"),
    "hub_lag_seconds": ("Seconds that a greenlet waited for its turn.", (), "max"),
}

BLOCKED: Final = "blocked"
STALLED: Final = "stalled"
#: Each has a series, also at 0, which differs from that of a process that has ended.
CONNECTION_STATES: Final = (
    *(each.value for each in SessionState if each is not SessionState.CLOSED),
    BLOCKED,
)
CONSUMER_STATES: Final = (
    *(
        each.value
        for each in ConsumerState
        if each not in {ConsumerState.STOPPED, ConsumerState.KILLED}
    ),
    STALLED,
)


class Published:
    """The series of one exchange, or queue that is published to by its name."""

    __slots__ = ("bytes", "errors", "messages", "seconds")

    def __init__(self, metrics: Metrics, broker: str, destination: str) -> None:
        self.messages = metrics.published.labels(broker, destination)
        self.bytes = metrics.published_bytes.labels(broker, destination)
        self.errors = metrics.publish_errors.labels(broker, destination)
        self.seconds = metrics.publish_seconds.labels(broker, destination)


class Handled:
    """The series of one queue."""

    __slots__ = ("dead_letters", "failed", "handled", "retried", "seconds")

    def __init__(self, metrics: Metrics, broker: str, queue: str) -> None:
        self.handled = metrics.handled.labels(broker, queue)
        self.failed = metrics.failed.labels(broker, queue)
        self.retried = metrics.retried.labels(broker, queue)
        self.dead_letters = metrics.dead_letters.labels(broker, queue)
        self.seconds = metrics.handle_seconds.labels(broker, queue)


class Metrics(Listener):
    """The metrics of a process, and what writes them.

    Arguments:
        registry: prometheus_client's; None: in which nothing is registered, as several processes share
            a directory.
        buckets: upper bounds of the histograms, in seconds.
    """

    def __init__(self, registry: CollectorRegistry | None, buckets: Iterable[float]) -> None:
        bounds = tuple(buckets)
        self._registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"greenconn_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"greenconn_{name}", text, labels, registry=registry, buckets=bounds)

        to, at = ("broker", "destination"), ("broker", "queue")
        self.published = counter("published", "Messages that were published.", *to)
        self.published_bytes = counter("published_bytes", "Bytes of their bodies.", *to)
        self.publish_errors = counter("publish_errors", "Publishes that raised an error.", *to)
        self.publish_seconds = histogram("publish_seconds", "Seconds of a publish.", *to)
        self.handled = counter("handled", "Messages whose handler returned.", *at)
        self.failed = counter(
            "failed", "Messages whose handler raised, or that could not be decoded.", *at
        )
        self.retried = counter("retried", "Messages that are handled again.", *at)
        self.dead_letters = counter("dead_letters", "Messages that were given up.", *at)
        self.handle_seconds = histogram("handle_seconds", "Seconds of a handler.", *at)
        self.connects = counter("connects", "Connections that were opened.", "broker")
        self.disconnects = counter(
            "disconnects", "Connections that ended, lost or closed.", "broker", "reason"
        )
        self.blocked_seconds = counter(
            "blocked_seconds", "Seconds in which the broker took no messages.", "broker"
        )
        self.pool_wait_seconds = histogram(
            "pool_wait_seconds", "Seconds that one had to wait for a pool.", "pool"
        )
        self.pool_errors = counter("pool_errors", "Waits for a pool that were in vain.", "pool")
        self.hub_blocked_seconds = counter(
            "hub_blocked_seconds", "Seconds in which no greenlet could run but one."
        )
        self._published: dict[tuple[str, str, str], Published] = {}
        self._handled: dict[tuple[str, str], Handled] = {}
        self._shared = SharedGauges() if registry is None else None
        if registry is not None:
            registry.register(self)

    # What prometheus_client asks for

    def describe(self) -> list[Any]:
        """Return nothing: what there is, is known when it is collected."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges of this thread, as they are now.  May switch."""
        for name, series in figures().items():
            text, labels, _ = GAUGES[name]
            family = GaugeMetricFamily(f"greenconn_{name}", text, labels=labels)
            for values, value in series.items():
                family.add_metric(values, value)
            yield family

    def remove(self) -> None:
        """Write no more, and take the metrics out of the registry.  A second call does nothing."""
        remove_listener(self)
        registry, self._registry = self._registry, None
        if registry is not None:
            registry.unregister(self)
            for each in vars(self).values():
                if isinstance(each, (Counter, Histogram)):
                    registry.unregister(each)
        if self._shared is not None:
            self._shared.stop()

    # What the library tells.  Nothing here switches.

    def on_confirm(self, event: ConfirmEvent) -> None:
        """Count a publish."""
        publish = event.publish
        exchange = publish.exchange
        key = (publish.connection, exchange, "" if exchange else publish.routing_key)
        series = self._published.get(key)
        if series is None:
            series = self._new_published(key)
        if event.error is None:
            series.messages.inc()
            series.bytes.inc(publish.size)
        else:
            series.errors.inc()
        series.seconds.observe(event.duration)

    def on_handled(self, event: HandledEvent) -> None:
        """Count a call of a handler, and its messages."""
        delivery = event.delivery
        series = self._of_queue(delivery.connection, delivery.queue)
        counter = series.handled if event.error is None else series.failed
        counter.inc(len(delivery.messages))
        series.seconds.observe(event.duration)

    def on_retry(self, event: RetryEvent) -> None:
        """Count a message that is handled again."""
        self._of_queue(event.connection, event.queue).retried.inc()

    def on_dead_letter(self, event: DeadLetterEvent) -> None:
        """Count a message that is given up."""
        self._of_queue(event.connection, event.queue).dead_letters.inc()

    def on_connect(self, event: ConnectEvent) -> None:
        """Count a connection that was opened."""
        self.connects.labels(event.connection).inc()
        if self._shared is not None:
            self._shared.start()

    def on_disconnect(self, event: DisconnectEvent) -> None:
        """Count a connection that ended."""
        reason = "closed" if event.error is None else "lost"
        self.disconnects.labels(event.connection, reason).inc()

    def on_unblocked(self, event: UnblockedEvent) -> None:
        """Count the seconds for which a broker took no messages."""
        self.blocked_seconds.labels(event.connection).inc(event.duration)

    def on_pool_wait(self, event: PoolWaitEvent) -> None:
        """Count a wait for a pool."""
        self.pool_wait_seconds.labels(event.pool).observe(event.duration)
        if event.error is not None:
            self.pool_errors.labels(event.pool).inc()

    def on_hub_blocked(self, event: HubBlockedEvent) -> None:
        """Count the seconds for which no other greenlet could run."""
        self.hub_blocked_seconds.inc(event.duration)

    def _new_published(self, key: tuple[str, str, str]) -> Published:
        broker, exchange, routing_key = key
        name = exchange or routing_key
        if not exchange and name.startswith(TEMPORARY):
            return Published(self, broker, "temporary")  # each is used once: it is not kept
        if len(self._published) >= MOST_SERIES:
            return Published(self, broker, OTHER)
        series = self._published[key] = Published(self, broker, name)
        return series

    def _of_queue(self, broker: str, queue: str) -> Handled:
        series = self._handled.get((broker, queue))
        if series is None:
            if len(self._handled) >= MOST_SERIES:
                return Handled(self, broker, OTHER)
            series = self._handled[broker, queue] = Handled(self, broker, queue)
        return series


class SharedGauges:
    """The gauges of one process among several, any of which may be asked for those of all."""

    def __init__(self) -> None:
        modes: Any = {name: f"live{mode}" for name, (_, _, mode) in GAUGES.items()}
        self._gauges = {
            name: Gauge(
                f"greenconn_{name}", text, labels, registry=None, multiprocess_mode=modes[name]
            )
            for name, (text, labels, _) in GAUGES.items()
        }
        #: Those that were written: one that is there no more is 0.
        self._written: set[tuple[str, tuple[str, ...]]] = set()
        self._ticker: Ticker | None = None
        self._process = 0

    def start(self) -> None:
        """Begin to write in this process.  A second call does nothing."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._written.clear()
            self.stop()
            self._ticker = Ticker(INTERVAL, self._write, "prometheus")
            self._ticker.start()
            self._write(0.0)

    def stop(self) -> None:
        """Write no more."""
        if self._ticker is not None:
            self._ticker.stop()

    def _write(self, lag: float) -> None:
        # In the hub, too.
        found: Figures = figures(lag)
        for name, values in self._written:
            found.setdefault(name, {}).setdefault(values, 0.0)
        for name, series in found.items():
            gauge = self._gauges[name]
            for values, value in series.items():
                (gauge.labels(*values) if values else gauge).set(value)
                self._written.add((name, values))


def is_shared() -> bool:
    """Return whether the metrics of several processes are in one directory."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


def instrument(
    registry: CollectorRegistry = DEFAULT_REGISTRY, *, buckets: Iterable[float] = BUCKETS
) -> Metrics:
    """Export what the library does in this process from now on.

    Arguments:
        registry: where the metrics are registered, unless several processes share a directory.
        buckets: upper bounds of the histograms, in seconds.

    Raises:
        ValueError: they are there already.
    """
    metrics = Metrics(None if is_shared() else registry, buckets)
    add_listener(metrics)
    return metrics


def wsgi_app(
    registry: CollectorRegistry = DEFAULT_REGISTRY,
) -> WSGIApp:
    """Return a WSGI application that answers with the metrics, of all processes that share a directory.

    Arguments:
        registry: what else there is, unless several processes share a directory.
    """
    if is_shared():
        registry = CollectorRegistry()
        collector: Any = MultiProcessCollector
        collector(registry)
    app: WSGIApp = make_wsgi_app(registry)
    return app


def child_exit(server: Any, worker: Any) -> None:
    """Remove the gauges of a worker that is gone: a hook for ``gunicorn.conf.py``."""
    if is_shared():
        remove: Any = mark_process_dead
        remove(worker.pid)


def figures(lag: float | None = None) -> Figures:
    """Return all gauges of this thread.

    Arguments:
        lag: seconds for which the hub kept a greenlet waiting; None: let one wait, and measure.  May
            switch then.
    """
    found: Figures = {name: defaultdict(float) for name in GAUGES}
    found["hub_lag_seconds"][()] = _lag() if lag is None else lag
    for session in sessions_in_use():
        _add_session(found, session)
    for consumer in running_consumers():
        _add_consumer(found, consumer)
    for name in failures():
        _add_state(found, "consumers", name, CONSUMER_STATES, ConsumerState.FAILED.value)
    for pool in all_pools():
        stats, labels = pool.stats(), (pool.name,)
        if stats["in_use"] or stats["waiting"] or stats["idle"]:
            found["pool_in_use"][labels] += stats["in_use"]
            found["pool_waiting"][labels] += stats["waiting"]
            found["pool_limit"][labels] += stats["limit"] or 0
    return found


def _lag() -> float:
    if getcurrent() is get_hub():
        return 0.0
    began_at = monotonic()
    yield_to_hub()
    return monotonic() - began_at


def _add_state(found: Figures, gauge: str, name: str, states: tuple[str, ...], state: str) -> None:
    for each in states:
        found[gauge][name, each] += each == state


def _add_session(found: Figures, session: Session) -> None:
    broker, link = session.broker.label, session.life.link
    flow_control = getattr(link, "flow_control", None)
    is_blocked = getattr(flow_control, "blocked", None) is not None
    state = BLOCKED if is_blocked else session.state.value
    _add_state(found, "connections", broker, CONNECTION_STATES, state)
    unacked = unconfirmed = 0
    for channel in list(getattr(link, "channels", {}).values()):
        unacked += getattr(channel, "unacked_count", 0)
        unconfirmed += getattr(channel, "unconfirmed_count", 0)
    budget: Any = getattr(link, "budget", None)
    found["unacked"][broker,] += unacked
    found["unconfirmed"][broker,] += unconfirmed
    found["inbox_bytes"][broker,] += 0 if budget is None else budget.held


def _add_consumer(found: Figures, consumer: ConsumerGreenlet) -> None:
    lifecycle, stats = consumer.lifecycle, consumer.stats()
    name = lifecycle.options.name or ""
    state = stats["state"] if lifecycle.current_stall is None else STALLED
    _add_state(found, "consumers", name, CONSUMER_STATES, state)
    found["consumer_in_flight"][name,] += stats["in_flight"]
    found["consumer_concurrency"][name,] += stats["concurrency"]
    age = stats["last_delivery_age"]
    if age is not None:
        ages = found["consumer_last_delivery_age_seconds"]
        ages[name,] = min(ages.get((name,), age), age)
