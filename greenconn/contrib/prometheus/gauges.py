"""Gauges: the state of connections, consumers and pools of this thread, as numbers."""

from __future__ import annotations

from collections import defaultdict
from time import monotonic
from typing import Any, Final, TypeAlias

from gevent import get_hub, getcurrent

from greenconn.green.hub import yield_to_hub
from greenconn.resource import all_pools
from greenconn.session.session import Session, sessions_in_use
from greenconn.session.state import SessionState
from greenconn.worker.consumer import ConsumerGreenlet, failures, running_consumers
from greenconn.worker.lifecycle import ConsumerState

__all__ = ["GAUGES", "Figures", "figures"]

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
