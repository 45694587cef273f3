"""Declaration of entities, once in the life of a connection.

What was declared is noted in the connection's ``declared_entities``, which a new link begins empty.
Many greenlets that publish to the same exchange at first declare it once: the others wait for that.

A queue that is known only by its name is looked up and used as it is.  If it does not exist, it must not
be declared with other arguments than those of a ``Queue`` of that name.  So a consumer of this thread
that is about to declare it, with its arguments, is waited for.  After that, the queue is declared only
by callers that asked for it.

Several entities are declared on one channel without a wait for each reply, where the channel can
(``can_pipeline``): it handles requests in order, and closes at the first that it refuses.  So the error
is that of the oldest request without a reply, as if each had been waited for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Hashable, Mapping
from copy import copy
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from gevent import sleep

from greenconn.abstract import MaybeChannelBound
from greenconn.checks import maybe_channel
from greenconn.entity.exchange import Exchange, binding
from greenconn.entity.queue import Queue, may_skip_counts
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    IrrecoverableConnectionError,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
    ResourceLocked,
    is_unavailable,
)
from greenconn.green.deadline import Deadline, TimeLimit, is_thrown
from greenconn.green.hub import PerHub
from greenconn.green.slot import Condition, SingleFlight
from greenconn.session.topology import IN_FLIGHT
from greenconn.transport.base import forget_declared

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from greenconn.abc import Channel, ChannelOrConnection
    from greenconn.session.session import Life, Session
    from greenconn.transport.amqp.calls import Pipeline
    from greenconn.transport.amqp.channel import Channel as PipeliningChannel


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
#: Methods that a program may have replaced on an entity itself.
_METHODS: Final = frozenset(("bind", "bind_to", "declare", "queue_bind", "queue_declare"))
#: Declares an entity on a channel.  May switch.
Declare: TypeAlias = "Callable[[Any, Channel], object]"


def declaration_cached(entity: Any, channel: Channel) -> bool:
    """Return whether *entity* is known to be declared in this life of the channel's connection."""
    declared = channel.connection.client.declared_entities
    return declaration_key(entity) in declared or entity in declared


def declaration_key(entity: Any) -> Any:
    """Return how *entity* is noted in ``declared_entities``: with its arguments.

    So that the broker is asked about another one of the same name with other arguments, too.
    """
    find = getattr(type(entity), "declaration_key", None)
    return hash(entity) if find is None else find(entity)  # a program's own class may have none


def maybe_declare(
    entity: Any,
    channel: ChannelOrConnection | None = None,
    retry: bool = False,
    **retry_policy: Any,
) -> bool:
    """Declare *entity*, unless that was done in this life of the connection.  May switch.

    Greenlets that want the same entity at the same time cause one declaration and all wait for it.

    Arguments:
        entity: an Exchange or a Queue.
        channel: a channel or connection; may be left out when the entity is bound.
        retry: reconnect and try again when the connection is lost; with *retry_policy* as
            ``Connection.ensure`` takes it.

    Returns:
        False if it was known to be declared.

    Raises:
        ChannelError: neither *channel* nor a bound entity was given; or the broker refused.
        RecoverableConnectionError: the channel has no connection any more.
    """
    if channel is None and not entity.is_bound:
        raise ChannelError(
            f"cannot declare {entity!r}, which is not bound, as no channel was given"
        )
    used: Channel = entity.channel if channel is None else maybe_channel(channel)
    if not retry:
        return declare_once(entity, used, _declare)
    _check_connected(entity, used)
    again = _Redeclaration(entity, used)
    client = again.channel.connection.client
    return bool(client.ensure(again, again, **retry_policy)())


def _check_connected(entity: Any, channel: Channel) -> None:
    if getattr(channel, "connection", None) is None:
        raise RecoverableConnectionError(
            f"cannot declare {entity!r}: its channel has lost its connection"
        )


class _Redeclaration:
    """A declaration that ``Connection.ensure`` repeats.

    It leaves the entity as it is, unless that is bound to a channel that has no connection any more.
    """

    __name__ = "maybe_declare"

    def __init__(self, entity: Any, channel: Channel) -> None:
        self.entity = entity
        self.channel = channel

    def revive(self, channel: Channel) -> None:
        self.channel = channel

    def __call__(self) -> bool:
        entity = self.entity
        if entity.is_bound and getattr(entity.channel, "connection", None) is None:
            # A channel of a transport written for kombu; those of ours find their successors.
            entity.revive(self.channel)
        return declare_once(entity, self.channel, _declare)


def _declare(entity: Any, channel: Channel) -> None:
    if not (isinstance(entity, MaybeChannelBound) or entity.is_bound):
        # A program's own class may need it; ours are declared on any channel, bound or not.
        entity = entity.bind(channel)
    entity.declare(channel=channel)


def declare_once(entity: Any, channel: Channel, declare: Declare) -> bool:
    """Declare *entity* by *declare*; else as :func:`maybe_declare`.  May switch."""
    _check_connected(entity, channel)
    if not entity.can_cache_declaration or not entity.name:
        # Without a name each declaration makes another queue.
        declare(entity, channel)
        return True
    while True:
        declaration = _Declaration(entity, channel, declare)
        if declaration.is_known:
            return False
        try:
            declaration.run()
        except RecoverableChannelError:
            if declaration.has_begun or not getattr(channel, "is_open", True):
                raise
            # Another greenlet's channel was closed by something else while it declared for us too.
        else:
            return True


class _Declaration:
    """A declaration of an entity for one greenlet, in the life of *channel*."""

    __slots__ = ("_channel", "_declare", "_declared", "_entity", "_ident", "_link", "has_begun")

    def __init__(self, entity: Any, channel: Channel, declare: Declare) -> None:
        self._entity = entity
        self._channel = channel
        self._declare = declare
        self._link = channel.connection
        self._declared = self._link.client.declared_entities
        self._ident = declaration_key(entity)
        #: Whether this one was carried out, rather than another greenlet's of the same entity.
        self.has_begun = False

    @property
    def is_known(self) -> bool:
        return self._ident in self._declared

    def run(self) -> None:
        """Declare, or wait for who does.  May switch."""
        flight = getattr(self._link.client, "declare_flight", None)
        if isinstance(flight, SingleFlight):
            # With the link, which may be any object: a former life says nothing about this one.
            flight.run((id(self._link), self._ident), self)
        else:  # kombu's connection has none
            self()

    def __call__(self) -> None:
        self.has_begun = True
        self._declare(self._entity, self._channel)
        if getattr(self._link, "is_open", True):
            # Of a life that ended meanwhile nothing is known any more.
            self._declared.add(self._ident)


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
        except session.broker.connection_errors as exc:
            # Of a life that ended meanwhile: the next one knows better.
            if is_thrown(exc) or life.is_open or deadline.has_ended:
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
                session.utility.run(
                    partial(declare_once, entity, declare=declare_pipelined), deadline
                )
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
        except session.broker.connection_errors as exc:
            if is_thrown(exc) or life.is_open or not tries_left or deadline.has_ended:
                raise
    raise AssertionError("unreachable")


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


def existence_key(target: str | Queue | Exchange) -> Any:
    """Return the key of *target* in ``Life.declared_entities``; None for one that cannot be cached."""
    if isinstance(target, str):
        return f"Q|{target}|"
    return target.declaration_key() if target.can_cache_declaration else None


def _look_up(session: Session, name: str, passive: bool) -> None:
    # In the flight's own greenlet: the deadline of one caller is not that of the others.  There is
    # no other: a thousand names may stand in line for a few channels, whose calls end in time.
    run, deadline = session.utility.run, Deadline()
    try:
        run(lambda channel: declare_uncounted(channel, queue=name, passive=True), deadline)
    except ResourceLocked:
        return  # another connection's own queue: it exists, and may be published to
    except NotFound as exc:
        if passive or is_unavailable(exc) or is_defined_by_consumer(session, name):
            raise
        run(
            lambda channel: declare_uncounted(channel, queue=name, durable=True, auto_delete=False),
            deadline,
        )


def declare_uncounted(channel: Channel, **how: Any) -> None:
    """Declare a queue, and do not have a store count its messages.  May switch.

    Arguments:
        how: arguments of ``Channel.queue_declare``.

    Raises:
        NotFound: there is no such queue, of a passive one.
        ChannelError, ConnectionError, TimeoutError: as each declaration.
    """
    channel.queue_declare(**how, nowait=may_skip_counts(channel))


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
    except TimeoutError as exc:
        if is_thrown(exc):
            raise
        raise TimeoutError(
            f"queue {name!r} does not exist, and the consumer of this program that declares it "
            f"has not done so yet"
        ) from None


def _awaited_of(session: Session, name: str) -> _Awaited | None:
    awaited = _awaited.get()
    return awaited.get(_key_of(session, name)) if awaited else None


def _key_of(session: Session, name: str) -> _Key:
    return session.broker.addresses, name


class Declarations:
    """Declarations in their order, pipelined; a context manager.

    Some entities are declared one by one, after the replies to those before them: those with
    ``on_declared``, which gets the reply; those that the broker names; and those of subclasses, whose
    methods may use what the channel returns.

    What has no reply at its end, as when the greenlet was killed, is abandoned: the broker may
    carry it out.

    Arguments:
        channel: where to declare; None: each entity on its own channel, one by one.

    Attributes:
        replies: what the broker said of each :meth:`queue_declare`: name, messages and consumers.
    """

    def __init__(self, channel: Channel | None) -> None:
        self._channel = channel
        self._pipeline: Pipeline | None = None
        # Of the type: a program's stand-in for a channel has every attribute.
        if getattr(type(channel), "can_pipeline", False):
            self._pipeline = cast("PipeliningChannel", channel).pipeline()
        self.replies: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pipeline is not None:
            self._pipeline.__exit__(kind, exc, traceback)

    def declare(self, entity: Any) -> None:
        """Declare an exchange, or a queue with its exchange and bindings.  May switch.

        Raises:
            ChannelError: the broker refused this one or an earlier one, which the error names.
            ConnectionError: the connection is gone.
            TimeoutError: the broker did not reply in time.
        """
        if self._waits_for(entity):
            self.finish()
            entity.declare(channel=self._channel)
        else:
            self._send(entity.declare)

    def queue_declare(self, queue: Any, **how: bool) -> None:
        """Declare a queue alone.  May switch.

        Arguments:
            how: arguments of ``Queue.queue_declare``.

        Raises:
            Exception: as :meth:`declare`.
        """
        if self._waits_for(queue):
            self.finish()
            self.replies.append(queue.queue_declare(channel=self._channel, **how))
        else:
            self._send(queue.queue_declare, **how)

    def finish(self) -> None:
        """Wait for all replies.  May switch.

        Raises:
            Exception: as :meth:`declare`.
        """
        self._receive(0)

    def _waits_for(self, entity: Any) -> bool:
        return self._pipeline is None or not _needs_no_reply(entity)

    def _send(self, declare: Any, **how: bool) -> None:
        try:
            declare(channel=self._channel, nowait=self._pipeline, **how)
        except (ChannelError, ConnectionError):
            # The channel may have been closed because of an earlier request: that has the reason.
            self.finish()
            raise
        self._receive(IN_FLIGHT)

    def _receive(self, limit: int) -> None:
        """Wait until at most *limit* requests have no reply."""
        pipeline = self._pipeline
        while pipeline is not None and pipeline.due > limit:
            self.replies.append(pipeline.receive())


def declare_pipelined(entity: Any, channel: Channel) -> None:
    """Declare *entity*, whose requests are sent together where the channel can.  May switch.

    Raises:
        Exception: as :meth:`Declarations.declare`.
    """
    with Declarations(channel) as declarations:
        declarations.declare(entity)
        declarations.finish()


def _needs_no_reply(entity: Any) -> bool:
    """Return whether *entity* is declared in the same way without the replies."""
    if type(entity) is Exchange:
        return _METHODS.isdisjoint(vars(entity))
    return (
        type(entity) is Queue
        and bool(entity.name)
        and entity._named_on is None
        and entity.on_declared is None
        and _METHODS.isdisjoint(vars(entity))
        and (entity.exchange is None or _needs_no_reply(entity.exchange))
        and all(
            type(each) is binding
            and _METHODS.isdisjoint(vars(each))
            and (each.exchange is None or _needs_no_reply(each.exchange))
            for each in entity.bindings
        )
    )
