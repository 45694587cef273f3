"""Whether this process can do its work: for probes of load balancers and orchestrators.

A connection that nobody uses, or that the next use will open, is as good as an open one: a probe must
never keep away the request that would mend it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.session.session import Session, sessions_in_use
from greenconn.session.state import SessionState
from greenconn.worker.consumer import ConsumerGreenlet, failures, running_consumers
from greenconn.worker.lifecycle import ConsumerState

__all__ = ["ConnectionHealth", "ConsumerHealth", "Health", "Probes", "check"]

WSGIApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: States of consumers that pass by themselves.
_STARTING: Final = frozenset({ConsumerState.STARTING, ConsumerState.RECOVERING})
_AT_WORK: Final = frozenset({ConsumerState.RUNNING, ConsumerState.PAUSED})


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionHealth:
    """One connection of this thread that was used and not closed."""

    url: str
    """Of the broker, the password masked."""

    state: str
    """A value of ``SessionState``: ``idle``, ``opening``, ``open``, ``recovering``."""

    blocked: str | None
    """Why the broker takes nothing (its memory or disk alarm); None while it does."""

    lost: str | None
    """Why the connection is gone, until there is another."""

    lives: int
    """How often it was opened: 1 more after each loss."""

    @property
    def is_ready(self) -> bool:
        """Whether a message may be published now, or the next use will open the connection."""
        return self.blocked is None and self.state != SessionState.RECOVERING.value


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsumerHealth:
    """One consumer of this thread that runs, or that the broker refused."""

    name: str
    """As given to ``spawn_consumer``, or the names of its queues."""

    state: str
    """A value of ``ConsumerState``."""

    error: str | None
    """What the broker refused it for; None while it does not."""

    stats: Mapping[str, Any]
    """Its ``stats()``; of one that the broker refused, those at its end."""

    @property
    def is_ready(self) -> bool:
        """Whether messages come in, or somebody has paused it."""
        return self.state in {each.value for each in _AT_WORK}


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """The result of :func:`check`."""

    connections: tuple[ConnectionHealth, ...]
    consumers: tuple[ConsumerHealth, ...]

    @property
    def is_live(self) -> bool:
        """Whether there is hope without a restart: no consumer was refused for good."""
        return all(each.error is None for each in self.consumers)

    @property
    def is_ready(self) -> bool:
        """Whether all connections and consumers are at work."""
        return all(each.is_ready for each in self.connections) and all(
            each.is_ready for each in self.consumers
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return {"live": self.is_live, "ready": self.is_ready, **asdict(self)}


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
            name=name, state=ConsumerState.FAILED.value, error=each.error, stats=each.stats
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
        pass  # closed meanwhile
    except TimeoutError:
        if not deadline.has_ended:
            raise  # somebody else's


def _await_consumer(consumer: ConsumerGreenlet, deadline: Deadline) -> None:
    try:
        if consumer.state in _STARTING:
            consumer.wait_ready(deadline.left())
    except Exception as exc:
        if exc is not consumer.lifecycle.error:  # which is reported
            raise


def _of_session(session: Session) -> ConnectionHealth:
    gate = getattr(session.life.link, "gate", None)
    return ConnectionHealth(
        url=session.broker.label,
        state=session.state.value,
        blocked=getattr(gate, "blocked", None),
        lost=None if session.lost is None else f"{type(session.lost).__name__}: {session.lost}",
        lives=session.generation,
    )


def _of_consumer(consumer: ConsumerGreenlet) -> ConsumerHealth:
    error = consumer.lifecycle.error
    return ConsumerHealth(
        name=consumer.lifecycle.options.name or "",
        state=consumer.state.value,
        error=None if error is None else f"{type(error).__name__}: {error}",
        stats=consumer.stats(),
    )


class Probes:
    """A WSGI application that answers ``/health/live`` and ``/health/ready``: 200, or 503.

    By itself, or around another application, which gets all other paths::

        application = greenconn.health.Probes(application)

    ``live`` is 503 when a restart is all that may help: the broker refused a consumer for good.
    ``ready`` is 503 while a consumer or a connection is on its way (back), or is ending, and while
    the broker takes nothing.

    Arguments:
        app: gets what is not for us; None: that is 404.
        prefix: of both paths.
        timeout: seconds to wait for what is on its way before ``ready`` says no.
        has_details: answer with all that :func:`check` tells.  Else just with yes or no, since a
            probe may be seen by others.
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
        """Answer a request.  May switch."""
        path = environ.get("PATH_INFO", "")
        if path == self._live:
            health = check()
            return self._answer(environ, start_response, health, "live", health.is_live)
        if path == self._ready:
            health = check(self._timeout)
            return self._answer(environ, start_response, health, "ready", health.is_ready)
        if self._app is not None:
            return self._app(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"not found\n"]

    def _answer(
        self,
        environ: dict[str, Any],
        start_response: Callable[..., Any],
        health: Health,
        question: str,
        answer: bool,
    ) -> list[bytes]:
        content = health.as_dict() if self._has_details else {question: answer}
        body = json.dumps(content, default=str).encode() + b"\n"
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response("200 OK" if answer else "503 Service Unavailable", headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]
