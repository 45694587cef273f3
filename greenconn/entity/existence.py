"""Making sure that what a program names exists at the broker, once in the life of a connection.

A queue that is known only by its name is looked up and used as it is.  If it does not exist, nobody who
knows only the name may make what a ``Queue`` of that name contradicts: while a consumer of this thread
is about to declare it, that is waited for.  Then those declare it who were told to.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from greenconn.entity.declaration import maybe_declare
from greenconn.entity.expected import is_defined_by_consumer, is_expected, wait_declared
from greenconn.exceptions import (
    IrrecoverableConnectionError,
    NotFound,
    RecoverableChannelError,
    ResourceLocked,
    is_unavailable,
)
from greenconn.green.deadline import Deadline

if TYPE_CHECKING:
    from greenconn.session.session import Session

__all__ = [
    "await_queue",
    "ensure_declared",
    "ensure_queue_exists",
    "existence_key",
    "forget_existence",
]

#: How often a declaration is repeated that was the bystander of another one's error.
TRIES = 5


def await_queue(session: Session, name: str, deadline: Deadline, *, declare: bool) -> None:
    """See that a queue that is to be published to exists.  May switch.

    Arguments:
        declare: declare it if it does not exist and no consumer of this thread is about to.

    Raises:
        NotFound: it does not exist, and nobody declares it.
        TimeoutError: the consumer that is about to declare it has not done so in time.
        Exception: as :func:`ensure_queue_exists`.
    """
    key = existence_key(name), True
    while True:
        # Both are asked before the lookup: what changes during it is seen by another one.
        is_awaited = is_expected(session, name)
        is_shared = session.life.declare_flight.is_running(key)
        try:
            ensure_queue_exists(session, name, deadline, passive=is_awaited or not declare)
            return
        except NotFound as exc:
            if is_unavailable(exc):
                raise
            if is_expected(session, name):
                wait_declared(session, name, deadline)
            elif not is_awaited and not is_shared:
                raise


def ensure_queue_exists(
    session: Session, name: str, deadline: Deadline, *, passive: bool = False
) -> None:
    """See that a queue known only by its name exists.  May switch.

    It is looked up, and used as it is; only if it does not exist is it declared: durable, classic,
    on the default exchange.  All of this runs on utility channels of *session*.

    Arguments:
        passive: do not declare it.

    Raises:
        NotFound: it does not exist, and *passive* was asked for or a consumer of this thread is about
            to declare it with arguments of its own.
        AccessRefused: it does not exist, and may not be declared.
        TimeoutError: it took too long; it goes on for those who wait longer.
        Exception: what opening the connection raised.
    """
    key = existence_key(name)
    while True:
        session.link(deadline)
        life = session.life
        if key in life.declared_entities:
            return
        try:
            life.declare_flight.run(
                (key, passive), partial(_look_up, session, name, passive), deadline
            )
        except IrrecoverableConnectionError:
            raise
        except session.broker.connection_errors:
            # Of a life that ended meanwhile: the next one knows better.
            if life.is_open or deadline.has_ended:
                raise
        else:
            life.declared_entities.add(key)
            return


def ensure_declared(session: Session, entity: Any, deadline: Deadline) -> None:
    """See that an Exchange or a Queue was declared in this life, on a utility channel.  May switch.

    Raises:
        PreconditionFailed: it exists with other arguments; the broker says which one differs.
        ChannelError: the broker refuses.
        Exception: what opening the connection raised.
    """
    for tries_left in reversed(range(TRIES)):
        session.link(deadline)
        life = session.life
        if existence_key(entity) in life.declared_entities:
            return
        try:
            session.utility.run(lambda channel: maybe_declare(entity, channel), deadline)
            return
        except RecoverableChannelError:
            if not tries_left or deadline.has_ended:
                raise
        except IrrecoverableConnectionError:
            raise  # a declaration may be so wrong that the broker ends the connection
        except session.broker.connection_errors:
            if life.is_open or not tries_left or deadline.has_ended:
                raise
    raise AssertionError("unreachable")


def forget_existence(session: Session, target: Any) -> None:
    """Take nothing for granted about *target* (the name of a queue, or an entity) any more."""
    session.life.declared_entities.discard(existence_key(target))


def existence_key(target: Any) -> Any:
    """Return the key of *target* in ``Life.declared_entities``; None for one that cannot be cached."""
    if isinstance(target, str):
        return ("queue", target)
    return hash(target) if target.can_cache_declaration else None


def _look_up(session: Session, name: str, passive: bool) -> None:
    # In the flight's own greenlet: the deadline of one caller is not that of the others.  There is
    # no other: a thousand names may stand in line for a few channels, whose calls end in time.
    run, deadline = session.utility.run, Deadline()
    try:
        run(lambda channel: channel.queue_declare(queue=name, passive=True), deadline)
    except ResourceLocked:
        return  # another connection's own queue: it exists, and may be published to
    except NotFound as exc:
        if passive or is_unavailable(exc) or is_defined_by_consumer(session, name):
            raise
        run(
            lambda channel: channel.queue_declare(queue=name, durable=True, auto_delete=False),
            deadline,
        )
