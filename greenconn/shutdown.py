"""The end of a process that consumes and publishes: nothing is lost, and it ends in time.

First the consumers stop taking messages and running handlers finish; then publishes get their
confirms; then all connections are closed, those that publish last, since a handler's last act may be
a publish.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final, Protocol

import gevent

from greenconn.green.deadline import Deadline
from greenconn.green.perhub import PerHub
from greenconn.green.supervisor import spawn
from greenconn.session.session import Session, sessions_in_use
from greenconn.worker.consumer import ConsumerGreenlet, running_consumers, stop_all

__all__ = [
    "Service",
    "add_service",
    "remove_service",
    "stop_and_close",
    "stop_gracefully",
    "time_for_handlers",
]

logger = logging.getLogger("greenconn.shutdown")

#: Seconds, at most, that are kept for interrupting handlers and closing.
MARGIN: Final = 2.0


class Service(Protocol):
    """Work of a program that goes on beside its consumers, and is started and stopped with them."""

    def start(self) -> None:
        """Begin in this thread, and return at once; do nothing if it runs."""

    def stop(self, timeout: float | None = None) -> bool:
        """End gracefully, within *timeout* seconds; return whether it did.  May switch."""


#: Those of each thread that run.
_services: Final[PerHub[list[Service]]] = PerHub(list)


def add_service(service: Service) -> None:
    """Have *service* stopped by :func:`stop_and_close`.  Never switches."""
    _services.get().append(service)


def remove_service(service: Service) -> None:
    """Undo :func:`add_service`: it has ended.  Never switches."""
    services = _services.get()
    if service in services:
        services.remove(service)


def time_for_handlers(seconds: float) -> float:
    """Return *seconds* without those that interrupting handlers and closing connections take."""
    return seconds - min(MARGIN, seconds / 4)


def stop_gracefully(consumers: list[ConsumerGreenlet], deadline: Deadline) -> bool:
    """Stop *consumers*; what has not ended by the deadline is interrupted, which is logged.  May switch.

    Returns:
        Whether all handlers finished by themselves.
    """
    if stop_all(consumers, deadline):
        return True
    logger.warning(
        "handlers had not ended when the process stopped, so they were interrupted, and their "
        "messages requeued"
    )
    return False


def stop_and_close(deadline: Deadline) -> bool:
    """Stop all consumers and services of this thread, finish its publishes, close its connections.

    May switch.

    Returns:
        Whether all handlers and services finished by themselves.
    """
    stopping = [spawn("shutdown-service", each.stop, deadline.left()) for each in _services.get()]
    is_whole = stop_gracefully(running_consumers(), deadline)
    gevent.joinall(stopping)
    is_whole = is_whole and all(each.value for each in stopping)
    sessions = sessions_in_use()
    publishing = [each for each in sessions if _may_publish(each)]
    _close_all(each for each in sessions if each not in publishing)
    _finish_publishes(publishing, deadline)
    _close_all(publishing)
    return is_whole


def _finish_publishes(sessions: Iterable[Session], deadline: Deadline) -> None:
    """Wait for the confirms of the publishes of *sessions*; what is missing is logged.  May switch."""
    gevent.joinall(
        [spawn("shutdown-confirms", _await_confirms, each, deadline) for each in sessions]
    )


def _close_all(sessions: Iterable[Session]) -> None:
    """Close *sessions* side by side.  May switch."""
    gevent.joinall([spawn("shutdown-close", each.close) for each in sessions])


def _may_publish(session: Session) -> bool:
    """Return whether it is not for consumers alone."""
    services = session.services
    return services.publisher is not None or services.consumers is None


def _await_confirms(session: Session, deadline: Deadline) -> None:
    settle = getattr(session.life.link, "settle", None)
    if settle is not None:
        try:
            settle(deadline)
        except TimeoutError:
            logger.warning(
                "%s did not confirm all publishes in time",
                session.broker.label,
                extra={"connection": session.broker.label},
            )
