"""Existence at the broker of what a program names, ensured once in the life of a connection.

A queue that is known only by its name is looked up and used as it is.  If it does not exist, it must not
be declared with other arguments than those of a ``Queue`` of that name.  So a consumer of this thread
that is about to declare it, with its arguments, is waited for.  After that, the queue is declared only
by callers that asked for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Mapping
from copy import copy
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gevent import sleep

from greenconn.entity.declaration import declaration_key, declare_once
from greenconn.entity.pipelining import declare_pipelined
from greenconn.entity.queue import Queue
from greenconn.exceptions import (
    IrrecoverableConnectionError,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    ResourceLocked,
    is_unavailable,
)
from greenconn.green.deadline import Deadline, TimeLimit
from greenconn.green.hub import PerHub
from greenconn.green.slot import Condition
from greenconn.transport.base import forget_declared

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.session.session import Session
    from greenconn.session.state import Life

logger = logging.getLogger("greenconn.entity")

_DLX: Final = "x-dead-letter-exchange"
_DLX_KEY: Final = "x-dead-letter-routing-key"
#: The broker's words for an argument that differs: its name, the queue, and its value there.
_DIFFERENCE: Final = re.compile(
    r"inequivalent arg '([\w-]+)' for queue '(.*)' in vhost .* but current is "
    r"(?:none|(?:the value )?'(.*?)'(?: of type| \(|$))"
)
#: How often a declaration is repeated that was the bystander of another one's error.
TRIES: Final = 5
#: Seconds between the deletion of a quorum queue, as far as it is known here, and its next declaration.
#: RabbitMQ 3.10 tells consumers of the deletion only if the queue is not declared again within a moment:
#: else it keeps them as consumers of the old one, and loses or never delivers what is published next.
RECREATION_PAUSE: Final = 0.5
#: Which queue: the broker's addresses, and the name there.
_Key: TypeAlias = "tuple[Hashable, str]"


def wait_for_queue(session: Session, name: str, deadline: Deadline, *, declare: bool) -> None:
    """Ensure that a queue that is to be published to exists.  May switch.

    Arguments:
        declare: declare it if it does not exist and no consumer of this thread is about to.

    Raises:
        NotFound: it does not exist, and no consumer declares it.
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
    """Ensure that a queue known only by its name exists.  May switch.

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
    """Ensure that an Exchange or a Queue was declared in this life, on a utility channel.  May switch.

    A queue may be declared with ``dead_letter`` in one program and without it in another: whichever is
    second uses the queue as it is.

    Raises:
        PreconditionFailed: it exists with other arguments; the broker says which one differs.
        ChannelError: the broker refuses.
        TimeoutError: it was not declared before the deadline.
        Exception: what opening the connection raised.
    """
    key, wanted = existence_key(entity), entity
    for tries_left in reversed(range(TRIES)):
        session.link(deadline)
        life = session.life
        if key in life.declared_entities:
            return
        _await_recreation(life, entity, deadline)
        try:
            # RabbitMQ waits for a classic queue whose node is away, for a minute and more.
            with TimeLimit(deadline, f"declaring {entity.name!r}"):
                session.utility.run(partial(_declare, entity), deadline)
            if entity is not wanted and key is not None and life.is_open:
                life.declared_entities.add(key)
            return
        except PreconditionFailed as exc:
            if not tries_left or not _may_differ(wanted):
                raise
            adapted = _with_dead_letters_as_they_are(entity, exc)
            if adapted is None:
                raise
            entity = adapted
        except RecoverableChannelError:
            if not tries_left or deadline.has_ended:
                raise
        except IrrecoverableConnectionError:
            raise  # a declaration may be so wrong that the broker ends the connection
        except session.broker.connection_errors:
            if life.is_open or not tries_left or deadline.has_ended:
                raise
    raise AssertionError("unreachable")


def _declare(entity: Any, channel: Channel) -> None:
    declare_once(entity, channel, declare_pipelined)


def _may_differ(entity: Any) -> bool:
    """Return whether *entity* is a queue without dead-letter arguments but those of ``dead_letter``."""
    if not isinstance(entity, Queue):
        return False
    return bool(entity.dead_letter) or _DLX not in (entity.queue_arguments or ())


def _with_dead_letters_as_they_are(queue: Queue, exc: PreconditionFailed) -> Queue | None:
    """Return *queue* as it is, with its dead letters, where *exc* says that it is other than asked for.

    None: something else differs, or the broker's argument is not one that ``dead_letter`` makes.
    """
    found = _DIFFERENCE.search(str(exc))
    if found is None:
        return None
    name, where, current = found.groups()  # current: None for none
    arguments = dict(queue.queue_arguments or {})
    adapted = copy(queue)
    adapted.on_declared, adapted.queue_arguments = queue.on_declared, arguments
    if where != queue.name:
        # The queue of the dead letters exists, with arguments of its own: it need not be declared.
        is_own = where == queue.dead_letter_queue
        adapted.dead_letter = None
        return adapted if is_own else None
    if name not in (_DLX, _DLX_KEY) or (name == _DLX and current):
        return None
    if current is not None:
        arguments[name] = current
    else:
        arguments.pop(_DLX, None)
        arguments.pop(_DLX_KEY, None)
        logger.warning(
            "queue %r exists without the dead-letter exchange of dead_letter=%r, and is used as it is: "
            "what the broker itself gives up, such as expired messages, is lost",
            queue.name,
            queue.dead_letter,
            extra={"queue": queue.name},
        )
    return adapted


def has_messages(session: Session, name: str, deadline: Deadline) -> bool:
    """Return whether a queue that exists holds messages that no consumer has.  May switch.

    Raises:
        NotFound: it does not exist.
        TimeoutError: it took too long.
        Exception: what opening the connection raised.
    """
    with TimeLimit(deadline, f"counting the messages of {name!r}"):
        found = session.utility.run(
            lambda channel: channel.queue_declare(queue=name, passive=True), deadline
        )
    return bool(found.message_count)


def forget_existence(session: Session, target: Any) -> None:
    """Forget what is known of *target* (the name of a queue, or an entity).  Never switches."""
    # However others of that name were declared: it is gone for them, too.
    name = target if isinstance(target, str) else target.name
    forget_declared(session.life.declared_entities, name)


def note_deleted(session: Session, target: Any) -> None:
    """Forget what is known of *target*, which turned out to be deleted.  Never switches."""
    forget_existence(session, target)
    if isinstance(target, Queue) and (target.queue_arguments or {}).get("x-queue-type") == "quorum":
        session.life.deleted_at[target.name] = monotonic()


def _await_recreation(life: Life, entity: Any, deadline: Deadline) -> None:
    """Wait until a quorum queue that was deleted may be declared again.  May switch."""
    if not life.deleted_at or (deleted_at := life.deleted_at.pop(entity.name, None)) is None:
        return
    pause = deleted_at + RECREATION_PAUSE - monotonic()
    if pause > 0:
        sleep(pause if (left := deadline.left()) is None else min(pause, left))


def existence_key(target: Any) -> Any:
    """Return the key of *target* in ``Life.declared_entities``; None for one that cannot be cached."""
    if isinstance(target, str):
        return f"Q|{target}|"
    return declaration_key(target) if target.can_cache_declaration else None


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


class _Awaited:
    """One queue that consumers are about to declare, and those who wait for that."""

    __slots__ = ("expectations", "settled")

    def __init__(self) -> None:
        self.expectations: set[Expectation] = set()
        self.settled = Condition()


_awaited: Final[PerHub[dict[_Key, _Awaited]]] = PerHub(dict)


class Expectation:
    """A consumer is about to declare a queue; made by :func:`expect_queue`.

    Attributes:
        is_defined: the consumer has a ``Queue``, so that its arguments are known to it alone.
    """

    __slots__ = ("_key", "is_defined")

    def __init__(self, key: _Key, is_defined: bool) -> None:
        self._key = key
        self.is_defined = is_defined

    def settle(self) -> None:
        """Note that it was declared, or will not be.  Never switches.  A second call does nothing."""
        awaited_here = _awaited.get()
        awaited = awaited_here.get(self._key)
        if awaited is None or self not in awaited.expectations:
            return
        awaited.expectations.discard(self)
        if not awaited.expectations:
            del awaited_here[self._key]
        awaited.settled.wake_all()


def expect_queue(session: Session, queue: str | Queue) -> Expectation:
    """Note that a consumer is about to declare *queue* by *session*.  Never switches."""
    is_defined = isinstance(queue, Queue)
    key = _key_of(session, queue.name if isinstance(queue, Queue) else queue)
    expectation = Expectation(key, is_defined)
    _awaited.get().setdefault(key, _Awaited()).expectations.add(expectation)
    return expectation


def expected_queues() -> Mapping[_Key, object]:
    """Return what is empty while no consumer of this thread is about to declare a queue.

    It stays the same object, so that who asks often keeps it.  Never switches.
    """
    return _awaited.get()


def is_expected(session: Session, name: str) -> bool:
    """Return whether a consumer of this thread is about to declare that queue.  Never switches."""
    awaited = _awaited.get()
    return bool(awaited) and _key_of(session, name) in awaited


def is_defined_by_consumer(session: Session, name: str) -> bool:
    """Return whether one is about to declare it with arguments of its own.  Never switches."""
    awaited = _awaited_of(session, name)
    return awaited is not None and any(each.is_defined for each in awaited.expectations)


def wait_declared(session: Session, name: str, deadline: Deadline) -> None:
    """Wait until one consumer that was about to declare the queue has done so, or does not any more.

    Returns at once if none is about to.  May switch.

    Raises:
        TimeoutError: the deadline ended first.
    """
    awaited = _awaited_of(session, name)
    if awaited is None:
        return
    try:
        awaited.settled.wait(deadline)
    except TimeoutError:
        raise TimeoutError(
            f"queue {name!r} does not exist, and the consumer of this program that declares it "
            f"has not done so yet"
        ) from None


def _awaited_of(session: Session, name: str) -> _Awaited | None:
    awaited = _awaited.get()
    return awaited.get(_key_of(session, name)) if awaited else None


def _key_of(session: Session, name: str) -> _Key:
    return session.broker.addresses, name
