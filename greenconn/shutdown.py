"""The end of a process that consumes and publishes: nothing is lost, and it ends in time.

First the consumers stop taking messages and running handlers finish; then publishes get their
confirms; then all connections are closed, those that publish last, since a handler's last act may be
a publish.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import gevent

from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.session.session import Session, sessions_in_use
from greenconn.worker.consumer import ConsumerGreenlet, running_consumers, stop_all

__all__ = ["stop_and_close", "stop_gracefully", "time_for_handlers"]

logger = logging.getLogger("greenconn.shutdown")

#: Seconds, at most, that are kept for interrupting handlers and closing.
MARGIN: Final = 2.0


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
    """Stop all consumers of this thread, finish its publishes, and close its connections.  May switch.

    Returns:
        Whether all handlers finished by themselves.
    """
    is_whole = stop_gracefully(running_consumers(), deadline)
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
            logger.warning("%s did not confirm all publishes in time", session.broker.label)
