"""Health checks of a process's connections and consumers, for load balancers and orchestrators.

Programs import it by ``from greenconn import health``.

A connection counts as ready when it is open, and also when it is idle and opens on its next use.
Otherwise a failing probe would keep away the requests that open the connection.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from time import monotonic, time
from typing import Any, Final, TypeAlias

from greenconn.checks import Seconds, in_seconds
from greenconn.exceptions import RecoverableConnectionError, error_text
from greenconn.green.deadline import Deadline
from greenconn.green.hub import PerHub
from greenconn.green.supervisor import OnDemand, Ticker
from greenconn.session.session import Session, SessionState, sessions_in_use
from greenconn.worker.consumer import ConsumerGreenlet, failures, running_consumers
from greenconn.worker.lifecycle import ConsumerLifecycle, ConsumerState, Stall

logger = logging.getLogger("greenconn.worker")

#: Checks of a queue before its consumer is reported as stalled.  One is not enough: a message may have
#: arrived just before it.
LOOKS: Final = 4
#: Seconds that the broker may take to answer.
ANSWER_TIMEOUT: Final = 10.0

WSGIApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: States of consumers that pass by themselves.
_STARTING: Final = frozenset({ConsumerState.STARTING, ConsumerState.RECOVERING})
_AT_WORK: Final = frozenset({ConsumerState.RUNNING, ConsumerState.PAUSED})

#: What to do about a connection or consumer that is not ready.
_BLOCKED: Final = (
    "free memory or disk at the broker, whose alarm it is: rabbitmq-diagnostics alarms; publishers "
    "wait, consumers go on"
)
_UNREACHABLE: Final = (
    "wait, if the broker is back soon; else see that it runs and can be reached: greenconn doctor"
)
_UNCONFIRMED: Final = (
    "wait: it is tried again; if it stays so, see that the broker runs and can be reached (greenconn "
    "doctor), and in the log what it refuses"
)
_REFUSED: Final = "mend what the broker refused, then restart the process: it does not try again"
_REMEDIES: Final[Mapping[str, str]] = {
    ConsumerState.STARTING.value: _UNCONFIRMED,
    ConsumerState.RECOVERING.value: _UNCONFIRMED,
    ConsumerState.STOPPING.value: "wait for its handlers: the program has stopped it",
    ConsumerState.FAILED.value: _REFUSED,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """A connection or consumer that is not ready, and the remedy."""

    what: str
    """The kind of object: ``connection`` or ``consumer``."""

    name: str
    """The URL of the connection, with the password masked, or the name of the consumer."""

    state: str
    """The state: ``recovering``, ``blocked``, ``starting``, ``stopping``, ``failed`` or ``stalled``."""

    since: str
    """The time when the state began: UTC, ISO 8601, with a resolution of seconds."""

    why: str | None
    """The error, or the reason that the broker sent; None if there is none."""

    remedy: str
    """The recommended action."""

    needs_restart: bool
    """Whether only a restart of the process can resolve it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionHealth:
    """The health of a connection of this thread that was used and is not closed."""

    url: str
    """The URL of the broker, with the password masked."""

    state: str
    """The value of a ``SessionState``: ``idle``, ``opening``, ``open`` or ``recovering``."""

    blocked: str | None
    """The reason why the broker blocks publishing (memory or disk alarm); None if it does not."""

    lost: str | None
    """The error that ended the connection; None if it was not lost or is open again."""

    lives: int
    """The number of times that the connection was opened; each reconnect adds 1."""

    since: str
    """The time when the state or the block began: UTC, ISO 8601, with a resolution of seconds."""

    @property
    def is_ready(self) -> bool:
        """Whether a message can be published now, or the next use opens the connection."""
        return self.blocked is None and self.state != SessionState.RECOVERING.value

    @property
    def reason(self) -> Reason | None:
        """The reason why it is not ready; None if it is ready."""
        if self.is_ready:
            return None
        is_lost = self.blocked is None
        return Reason(
            what="connection",
            name=self.url,
            state=self.state if is_lost else "blocked",
            since=self.since,
            why=self.lost if is_lost else self.blocked,
            remedy=_UNREACHABLE if is_lost else _BLOCKED,
            needs_restart=False,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsumerHealth:
    """The health of a consumer of this thread that is running or was refused by the broker."""

    name: str
    """The name passed to ``spawn_consumer``, or else the names of the consumer's queues."""

    state: str
    """The value of a ``ConsumerState``."""

    error: str | None
    """The error that keeps the broker from confirming the consumer; None if it is confirmed."""

    since: str
    """The time when the state began: UTC, ISO 8601, with a resolution of seconds."""

    stats: Mapping[str, Any]
    """The consumer's ``stats()``; for a refused consumer, its last ``stats()``."""

    stall: Reason | None
    """The stall that a :class:`Watchdog` detected; None if there is none."""

    @property
    def is_ready(self) -> bool:
        """Whether the consumer receives messages, or the program has paused it."""
        return self.stall is None and self.state in {each.value for each in _AT_WORK}

    @property
    def reason(self) -> Reason | None:
        """The reason why it is not ready; None if it is ready."""
        if self.is_ready or self.stall is not None:
            return self.stall
        return Reason(
            what="consumer",
            name=self.name,
            state=self.state,
            since=self.since,
            why=self.error,
            remedy=_REMEDIES.get(self.state, ""),
            needs_restart=self.state == ConsumerState.FAILED.value,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """The result of :func:`check`."""

    connections: tuple[ConnectionHealth, ...]
    """The connections of this thread, sorted by URL."""

    consumers: tuple[ConsumerHealth, ...]
    """The consumers of this thread, sorted by name."""

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """The reasons why the process is not ready, those that need a restart first; empty if ready."""
        found = [each.reason for each in self.consumers]
        found += [each.reason for each in self.connections]
        reasons = [each for each in found if each is not None]
        return tuple(sorted(reasons, key=lambda each: not each.needs_restart))

    @property
    def is_live(self) -> bool:
        """Whether the process can recover without a restart."""
        return not any(each.needs_restart for each in self.reasons)

    @property
    def is_ready(self) -> bool:
        """Whether all connections and consumers are ready."""
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a dict that can be serialized as JSON."""
        return {
            "live": self.is_live,
            "ready": self.is_ready,
            "reasons": [asdict(each) for each in self.reasons],
            **asdict(self),
        }


def check(timeout: Seconds = 0.0) -> Health:
    """Check the connections and consumers of this thread.

    Never switches if *timeout* is 0.  Otherwise may switch.

    Arguments:
        timeout: maximum seconds to wait for connections and consumers that are starting or recovering.
            0 reports the current state without waiting.

    Returns:
        The state of each connection and consumer.
    """
    deadline = Deadline(timeout)
    if not deadline.has_ended:
        for session in sessions_in_use():
            _await_session(session, deadline)
        for consumer in running_consumers():
            _await_consumer(consumer, deadline)
    consumers = [_of_consumer(each) for each in running_consumers()]
    consumers += [
        ConsumerHealth(
            name=name,
            state=ConsumerState.FAILED.value,
            error=each.error,
            since=_time_of(each.at),
            stats=each.stats,
            stall=None,
        )
        for name, each in failures().items()
    ]
    return Health(
        connections=tuple(
            sorted(map(_of_session, sessions_in_use()), key=lambda each: (each.url, each.state))
        ),
        consumers=tuple(sorted(consumers, key=lambda each: each.name)),
    )


def _await_session(session: Session, deadline: Deadline) -> None:
    try:
        session.wait_settled(deadline)
    except RecoverableConnectionError:
        pass  # it was closed meanwhile
    except TimeoutError:
        if not deadline.has_ended:
            raise  # another error than that of the wait


def _await_consumer(consumer: ConsumerGreenlet, deadline: Deadline) -> None:
    try:
        if consumer.state in _STARTING:
            consumer.wait_ready(deadline.left())
    except Exception as exc:
        if exc is not consumer.lifecycle.error:  # which is reported
            raise


def _of_session(session: Session) -> ConnectionHealth:
    flow_control = getattr(session.life.link, "flow_control", None)
    blocked, since = getattr(flow_control, "blocked", None), session.changed_at
    if flow_control is not None and blocked is not None:
        since = time() - (monotonic() - flow_control.blocked_at)
    return ConnectionHealth(
        url=session.broker.label,
        state=session.state.value,
        blocked=blocked,
        lost=None if session.lost is None else f"{type(session.lost).__name__}: {session.lost}",
        lives=session.generation,
        since=_time_of(since),
    )


def _of_consumer(consumer: ConsumerGreenlet) -> ConsumerHealth:
    lifecycle = consumer.lifecycle
    name, stall = lifecycle.options.name or "", lifecycle.current_stall
    return ConsumerHealth(
        name=name,
        state=consumer.state.value,
        error=lifecycle.failure,
        since=_time_of(lifecycle.changed_at),
        stats=consumer.stats(),
        stall=None if stall is None else _of_stall(name, stall),
    )


def _of_stall(name: str, stall: Stall) -> Reason:
    return Reason(
        what="consumer",
        name=name,
        state="stalled",
        since=_time_of(stall.since),
        why=stall.why,
        remedy=stall.remedy,
        needs_restart=stall.is_fatal,
    )


def _time_of(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


class Probes:
    """A WSGI application that answers ``/health/live`` and ``/health/ready``: 200, or 503.

    Use it alone, or wrap another application, which then receives the requests for all other paths::

        application = greenconn.health.Probes(application)

    ``/health/live`` responds with 503 if only a restart of the process can help, for example after the
    broker refused a consumer permanently.  ``/health/ready`` responds with 503 while a consumer or
    connection is starting, recovering or stopping, and while the broker blocks publishing.  The body of
    a 503 response lists ``reasons``: the objects that are not ready, since when, and the remedy.

    Arguments:
        app: the WSGI application for all other paths.  None responds to them with 404.
        prefix: the common prefix of both paths.
        timeout: maximum seconds that ``ready`` waits for connections and consumers that are starting or
            recovering before it responds with 503.
        has_details: whether to respond with the whole result of :func:`check`.  False omits names and
            errors from the reasons, since a probe may be publicly accessible.
    """

    def __init__(
        self,
        app: WSGIApp | None = None,
        *,
        prefix: str = "/health",
        timeout: Seconds = 0.0,
        has_details: bool = False,
    ) -> None:
        self._app = app
        self._timeout = timeout
        self._has_details = has_details
        self._live, self._ready = f"{prefix}/live", f"{prefix}/ready"

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Respond to a request.  May switch."""
        path = environ.get("PATH_INFO", "")
        if path == self._live:
            health = check()
            return self._respond(environ, start_response, health, "live", health.is_live)
        if path == self._ready:
            health = check(self._timeout)
            return self._respond(environ, start_response, health, "ready", health.is_ready)
        if self._app is not None:
            return self._app(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"not found\n"]

    def _respond(
        self,
        environ: dict[str, Any],
        start_response: Callable[..., Any],
        health: Health,
        probe: str,
        is_ok: bool,
    ) -> list[bytes]:
        content = health.as_dict() if self._has_details else _summary(health, probe, is_ok)
        body = json.dumps(content, default=str).encode() + b"\n"
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response("200 OK" if is_ok else "503 Service Unavailable", headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


#: The fields of a reason that a probe shows without ``has_details``.
_PUBLIC: Final = ("what", "state", "since", "remedy")


def _summary(health: Health, probe: str, is_ok: bool) -> dict[str, Any]:
    if is_ok:
        return {probe: True}
    return {
        probe: False,
        "reasons": [
            {name: getattr(each, name) for name in _PUBLIC}
            for each in health.reasons
            if each.needs_restart or probe == "ready"
        ],
    }


class Watchdog:
    """A monitor of the consumers of this thread, which runs until it is stopped.

    A consumer is *stalled* when its queue held messages at each check of the last *after* seconds and no
    message was delivered to it.  Such a consumer looks healthy: its connection is open, and the broker
    has confirmed it.  But all its handlers may be stuck, the broker may have forgotten it, or another
    consumer may receive all messages of the queue.  The watchdog logs this once, as an error,
    and ``greenconn.health`` reports the consumer as not ready until it receives a message or its queue
    is empty.

    The watchdog ignores streams, which always hold messages, and queues with a single active consumer.

    Arguments:
        after: seconds without a delivery, above 0; choose more than the longest handler takes.
        is_fatal: a stalled consumer also makes ``health.check()`` say that the process should be
            restarted.

    Raises:
        ValueError: *after* is not above 0.
    """

    def __init__(self, after: Seconds = 300.0, *, is_fatal: bool = False) -> None:
        after = in_seconds(after)
        if not after > 0:
            raise ValueError(f"after must be above 0 s, got {after!r}")
        self.after = after
        self.is_fatal = is_fatal
        #: At the last check: the number of deliveries, and since when the queue has held messages.
        self._seen: dict[ConsumerLifecycle, tuple[int, float]] = {}
        self._looking = OnDemand("watchdog", self._look)
        self._ticker = Ticker(after / LOOKS, self._on_tick, "watchdog")
        self._ticker.start()
        _kept.get().add(self)

    def stop(self) -> None:
        """Stop the watchdog, and clear its findings.  A second call does nothing."""
        self._ticker.stop()
        _kept.get().discard(self)
        self._looking.end()
        for consumer in running_consumers():
            consumer.lifecycle.stall = None

    def _on_tick(self, lag: float) -> None:
        # In the hub.
        self._looking.start()

    def _look(self) -> None:
        seen, self._seen = self._seen, {}
        for consumer in running_consumers():
            lifecycle = consumer.lifecycle
            received = lifecycle.dispatcher.received
            self._look_at(lifecycle, *seen.get(lifecycle, (received, monotonic())))

    def _look_at(self, lifecycle: ConsumerLifecycle, number: int, since: float) -> None:
        """Check one consumer, which had received *number* messages at the time *since*.  May switch."""
        received = lifecycle.dispatcher.received
        if (
            number != received
            or lifecycle.state is not ConsumerState.RUNNING
            or not self._is_waited_for(lifecycle)
            or lifecycle.dispatcher.received != received
        ):
            lifecycle.stall = None
            return
        self._seen[lifecycle] = (received, since)
        if monotonic() - since >= self.after and lifecycle.stall is None:
            lifecycle.stall = self._stall_of(lifecycle)
            logger.error(
                "consumer of queue %s is stalled: %s; %s",
                lifecycle.options.name,
                lifecycle.stall.why,
                lifecycle.stall.remedy,
                extra=lifecycle.fields(),
            )

    def _is_waited_for(self, lifecycle: ConsumerLifecycle) -> bool:
        """Return whether the broker says that a queue of the consumer holds messages.  May switch."""
        last_at = lifecycle.dispatcher.last_at
        if last_at is not None and monotonic() - last_at < self.after / LOOKS:
            return False  # the broker need not be asked
        try:
            return lifecycle.has_waiting_messages(Deadline(ANSWER_TIMEOUT))
        except Exception as exc:
            logger.debug("watchdog: %s", error_text(exc), extra=lifecycle.fields())
            return False

    def _stall_of(self, lifecycle: ConsumerLifecycle) -> Stall:
        dispatcher, last_at = lifecycle.dispatcher, lifecycle.dispatcher.last_at
        waited = self.after if last_at is None else monotonic() - last_at
        held, prefetch = dispatcher.unsettled(), lifecycle.options.prefetch
        why = f"nothing was delivered for {waited:.0f} s, and its queue holds messages"
        if held and held >= prefetch:
            why += f"; it has {held} that its handlers do not finish"
            remedy = (
                "see in greenconn.debug.dump() what the handlers wait for, and give them a "
                "handler_timeout"
            )
        else:
            remedy = (
                "look at the consumers of the queue at the broker: another may come first; if this "
                "one is not among them, restart the process"
            )
        return Stall(dispatcher.received, time() - waited, why, remedy, self.is_fatal)


#: The watchdogs that run.  This keeps them alive, as their tickers do not.
_kept: Final[PerHub[set[Watchdog]]] = PerHub(set)
