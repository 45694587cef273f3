"""The port between the directory of queues and a broker: what a link must be able to ask of its queues.

An adapter has no rules of its own about who may use a queue, and which declarations are the same: these
are decided once, in :class:`~greenconn.broker.directory.Directory`.  What it reads it notes in
:class:`KnownQueues`, as far as it may be remembered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar, Final, NamedTuple, Protocol

from greenconn.transport.refusal import Method
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.declaration import UNDECLARED, Declaration

__all__ = ["ConsumedQueue", "KnownQueues", "QueueStore", "Rules"]

#: Queues that a link remembers.
MOST_KNOWN: Final = 100_000


class ConsumedQueue(Protocol):
    """The feed of one queue, as the directory sees it."""

    @property
    def consumers(self) -> Collection[Consumer]: ...


class Rules(NamedTuple):
    """The rules of a queue that count at each publish and delivery.

    Attributes:
        message_ttl: seconds that a message may wait; None: for ever.
        max_priority: the highest; None: all count.
        delivery_limit: how often a message may be delivered; None: no limit.
        is_single_active: only the oldest consumer is served.
    """

    message_ttl: float | None
    max_priority: int | None
    delivery_limit: int | None
    is_single_active: bool


class KnownQueues:
    """The declarations of queues that one link has read.  Nothing here switches.

    Attributes:
        declared: queue -> its declaration, unless it may have changed since it was read.
        rules: queue -> the rules of such a declaration.
    """

    __slots__ = ("_last", "declared", "rules")

    def __init__(self) -> None:
        self.declared: dict[str, Declaration] = {}
        self.rules: dict[str, Rules] = {}
        #: The declarations that were read last, whether or not they may have changed since.
        self._last: dict[str, Declaration] = {}

    def remember(self, name: str, declared: Declaration) -> None:
        """Note the declaration of a queue."""
        if self.declared.get(name) != declared:
            self.rules.pop(name, None)
            if name not in self._last and len(self._last) >= MOST_KNOWN:
                self.clear()
        self.declared[name] = self._last[name] = declared

    def last(self, name: str) -> Declaration:
        """Return the declaration of a queue as it was read last."""
        return self._last.get(name, UNDECLARED)

    def forget(self, name: str) -> None:
        """Note that a queue may have changed: ask again when it is next needed."""
        self.declared.pop(name, None)
        self.rules.pop(name, None)

    def ended(self, name: str) -> None:
        """Note that a queue is gone."""
        self.forget(name)
        self._last.pop(name, None)

    def clear(self) -> None:
        """Forget all queues."""
        for each in (self.declared, self.rules, self._last):
            each.clear()


class QueueStore(ABC):
    """The queues of a broker, as one link asks for them.  All methods may switch, unless they say so."""

    #: Whether the broker itself deletes the exclusive queues of a link that has ended.
    ends_exclusive: ClassVar[bool] = False

    def check_name(self, name: str, method: Method) -> None:  # noqa: B027
        """See that a queue may have this name.  Never switches.

        Raises:
            AccessRefused: it is reserved.
        """

    def settle(self) -> None:  # noqa: B027
        """Wait until earlier changes by this link are visible to all clients."""

    @abstractmethod
    def find(self, name: str) -> Declaration | None:
        """Ask the broker for a queue; None when there is none."""

    def is_current(self, name: str) -> bool:
        """Return whether a known declaration may be believed where a queue must exist.

        Never switches.  By default the broker is asked each time.
        """
        return False

    def is_there(self, name: str) -> bool:
        """Return whether a queue exists, as far as is known here; else ask the broker."""
        return self.find(name) is not None

    @abstractmethod
    def make(self, name: str, declared: Declaration) -> Declaration:
        """Store *declared* unless another client was faster; return what is stored."""

    @abstractmethod
    def counts(self, name: str) -> tuple[int, int]:
        """Return the numbers of a queue's waiting messages and consumers."""

    def names(self) -> Collection[str] | None:
        """Return the names of the queues that exist; None: the broker cannot list them."""
        return None

    def touch(self, name: str) -> None:  # noqa: B027
        """Begin the time without use of a queue anew: it was declared.  Never switches."""

    @abstractmethod
    def purge(self, name: str) -> int:
        """Drop the messages that wait in a queue, and return how many there were."""

    @abstractmethod
    def drop(self, name: str) -> int:
        """Delete a queue and its bindings, and return how many messages it had."""
