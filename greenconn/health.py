"""Health of the connections and consumers of a process: for probes of load balancers and orchestrators.

A connection that is not in use, or that the next use will open, is as good as an open one: a probe must
never keep away the request that would mend it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Final, TypeAlias

from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.session.session import Session, sessions_in_use
from greenconn.session.state import SessionState
from greenconn.worker.consumer import ConsumerGreenlet, failures, running_consumers
from greenconn.worker.lifecycle import ConsumerState, Stall
from greenconn.worker.watchdog import Watchdog

__all__ = [
    "ConnectionHealth",
    "ConsumerHealth",
    "Health",
    "Probes",
    "Reason",
    "Watchdog",
    "check",
]

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
    """One thing that keeps a process from being ready."""

    what: str
    """``connection`` or ``consumer``."""

    name: str
    """The URL, password masked; or the consumer's name."""

    state: str
    """``recovering``, ``blocked``, ``starting``, ``stopping``, ``failed`` or ``stalled``."""

    since: str
    """UTC, ISO 8601, in seconds."""

    why: str | None
    """The error or the broker's reason, if there is one."""

    remedy: str
    """What to do."""

    needs_restart: bool
    """Whether only a restart of the process may help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionHealth:
    """One connection of this thread that was used and not closed."""

    url: str
    """The URL of the broker, password masked."""

    state: str
    """A value of ``SessionState``: ``idle``, ``opening``, ``open``, ``recovering``."""

    blocked: str | None
    """Why the broker blocks publishing (its memory or disk alarm); None while it does not."""

    lost: str | None
    """Why the connection was lost; None once it is open again."""

    lives: int
    """Number of times that it was opened: 1 more after each loss."""

    since: str
    """When it has reached its state, or was blocked: UTC, ISO 8601, in seconds."""

    @property
    def is_ready(self) -> bool:
        """Whether a message may be published now, or the next use will open the connection."""
        return self.blocked is None and self.state != SessionState.RECOVERING.value

    @property
    def reason(self) -> Reason | None:
        """Why it is not ready; None if it is."""
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
    """One consumer of this thread that runs, or that the broker refused."""

    name: str
    """The name that ``spawn_consumer`` was given, or the names of its queues."""

    state: str
    """A value of ``ConsumerState``."""

    error: str | None
    """Why the broker refused it, or does not confirm it yet; None if it has confirmed it."""

    since: str
    """When it has reached its state: UTC, ISO 8601, in seconds."""

    stats: Mapping[str, Any]
    """Its ``stats()``; of one that the broker refused, those at its end."""

    stall: Reason | None
    """What a :class:`Watchdog` has found."""

    @property
    def is_ready(self) -> bool:
        """Whether it receives messages, or was paused by the program."""
        return self.stall is None and self.state in {each.value for each in _AT_WORK}

    @property
    def reason(self) -> Reason | None:
        """Why it is not ready; None if it is."""
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
    consumers: tuple[ConsumerHealth, ...]

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why the process is not ready, the gravest first; empty if it is."""
        found = [each.reason for each in self.consumers]
        found += [each.reason for each in self.connections]
        reasons = [each for each in found if each is not None]
        return tuple(sorted(reasons, key=lambda each: not each.needs_restart))

    @property
    def is_live(self) -> bool:
        """Whether no restart is needed: the broker has refused no consumer for good."""
        return not any(each.needs_restart for each in self.reasons)

    @property
    def is_ready(self) -> bool:
        """Whether all connections and consumers are at work."""
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a dict that JSON can hold."""
        return {
            "live": self.is_live,
            "ready": self.is_ready,
            "reasons": [asdict(each) for each in self.reasons],
            **asdict(self),
        }


def check(timeout: float = 0.0) -> Health:
    """Look at the connections and consumers of this thread.

    Arguments:
        timeout: seconds to wait for what starts or comes back.  0: report how it is now, without
            a switch.  Else may switch.
    """
    deadline = Deadline(timeout)
    if timeout > 0:
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
    blocked = getattr(flow_control, "blocked", None)
    return ConnectionHealth(
        url=session.broker.label,
        state=session.state.value,
        blocked=blocked,
        lost=None if session.lost is None else f"{type(session.lost).__name__}: {session.lost}",
        lives=session.generation,
        since=_time_of(session.changed_at),
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

    By itself, or around another application, which gets all other paths::

        application = greenconn.health.Probes(application)

    ``live`` is 503 when only a restart can help: the broker refused a consumer for good.
    ``ready`` is 503 while a consumer or a connection is starting, recovering or ending, and while the
    broker blocks publishing.  A 503 has ``reasons``: what is not ready, since when, and what to do.

    Arguments:
        app: gets the requests for other paths; None: they are 404.
        prefix: of both paths.
        timeout: seconds that ``ready`` waits for what is starting or recovering, before it is 503.
        has_details: respond with the whole result of :func:`check`; else reasons have neither names nor
            errors, since others may see a probe.
    """

    def __init__(
        self,
        app: WSGIApp | None = None,
        *,
        prefix: str = "/health",
        timeout: float = 0.0,
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


#: The fields of a reason that probes show to all.
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
