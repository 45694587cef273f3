"""Queues that a consumer of this thread is about to declare.

A queue is declared by those who consume from it, with the arguments that they know.  Whoever knows its
name only waits for that, and declares nothing that the consumer's ``Queue`` would contradict.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Final, TypeAlias

from greenconn.entity.queue import Queue
from greenconn.green.condition import Condition
from greenconn.green.deadline import Deadline
from greenconn.green.perhub import PerHub

if TYPE_CHECKING:
    from greenconn.session.session import Session

__all__ = ["Expectation", "expect_queue", "is_defined_by_consumer", "is_expected", "wait_declared"]

#: Which queue: the broker's addresses, and the name there.
_Key: TypeAlias = "tuple[Hashable, str]"


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
        """Say that it was declared, or will not be.  Never switches.  Again: does nothing."""
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


def is_expected(session: Session, name: str) -> bool:
    """Return whether a consumer of this thread is about to declare that queue.  Never switches."""
    return _awaited_of(session, name) is not None


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
            f"queue {name!r} does not exist, and the consumer of this program that is about to "
            f"declare it has not done so"
        ) from None


def _awaited_of(session: Session, name: str) -> _Awaited | None:
    awaited = _awaited.get()
    return awaited.get(_key_of(session, name)) if awaited else None


def _key_of(session: Session, name: str) -> _Key:
    return session.broker.addresses, name
