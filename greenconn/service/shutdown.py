"""Graceful shutdown of a process: no message is lost, and the process ends within a deadline.

The shutdown has three steps.  First the consumers stop receiving messages, and running handlers finish.
Then pending publishes wait for their publisher confirms.  Then all connections are closed.  Connections
that publish are closed last, since a handler may publish a message just before it returns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final, Protocol

import gevent

from greenconn.checks import Seconds
from greenconn.green.deadline import Deadline
from greenconn.green.hub import PerHub
from greenconn.green.supervisor import spawn
from greenconn.session.session import Session, sessions_in_use
from greenconn.worker.consumer import ConsumerGreenlet, running_consumers, stop_all

logger = logging.getLogger("greenconn.shutdown")

#: Seconds, at most, that are kept for interrupting handlers and closing.
MARGIN: Final = 2.0


class Service(Protocol):
    """A background service of a program that is started and stopped together with its consumers."""

    def start(self) -> None:
        """Start the service in this thread and return immediately; do nothing if it is running."""

    def stop(self, timeout: Seconds | None = None) -> bool:
        """Stop the service gracefully.  May switch.

        Arguments:
            timeout: maximum seconds for the shutdown.  None waits without limit.

        Returns:
            Whether the service finished by itself within *timeout*.
        """


#: The running services of each thread.
_services: Final[PerHub[list[Service]]] = PerHub(list)


def add_service(service: Service) -> None:
    """Register *service*, to be stopped by :func:`stop_and_close`.  Never switches."""
    _services.get().append(service)


def remove_service(service: Service) -> None:
    """Unregister a *service* that has ended; ignore it if it is not registered.  Never switches."""
    services = _services.get()
    if service in services:
        services.remove(service)


def time_for_handlers(seconds: float) -> float:
    """Return *seconds* minus the time reserved for interrupting handlers and closing connections."""
    return seconds - min(MARGIN, seconds / 4)


def stop_gracefully(consumers: list[ConsumerGreenlet], deadline: Deadline) -> bool:
    """Stop *consumers* gracefully.  May switch.

    Handlers that have not finished by the deadline are interrupted, and a warning is logged.

    Returns:
        Whether all handlers finished without being interrupted.
    """
    if stop_all(consumers, deadline):
        return True
    logger.warning(
        "handlers had not ended when the process stopped, so they were interrupted, and their "
        "messages requeued"
    )
    return False


def stop_and_close(deadline: Deadline) -> bool:
    """Stop the consumers and services of this thread, finish its publishes and close its connections.

    May switch.

    Arguments:
        deadline: the deadline for stopping and for the outstanding publisher confirms.

    Returns:
        Whether all handlers and services finished without being interrupted.
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
    """Wait for the publisher confirms of *sessions*; log missing ones.  May switch."""
    gevent.joinall(
        [spawn("shutdown-confirms", _await_confirms, each, deadline) for each in sessions]
    )


def _close_all(sessions: Iterable[Session]) -> None:
    """Close *sessions* concurrently.  May switch."""
    gevent.joinall([spawn("shutdown-close", each.close) for each in sessions])


def _may_publish(session: Session) -> bool:
    """Return whether *session* is used for more than consumers."""
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
