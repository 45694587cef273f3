"""What a broker must be able to do, for the channels of this room to do all the rest.

A *store* keeps queues of messages in the world outside, for many processes.  Whoever wants a message
*claims* it: it stays in the store, nobody else gets it, and it comes back by itself when its lease
ends and was not renewed.  So a process that dies loses nothing.

A store belongs to one link: it is opened once, then closed or lost.  All its methods may switch, and
are called by library greenlets, one for each kind of work (storing, claiming, settling, renewing),
at the same time: what must not be mixed on one connection is the store's matter.  None of them is
ever interrupted by a user's timeout or kill, but any may be ended by ``GreenletExit`` when the link
ends.  A store raises one of the transport's ``connection_errors`` when it has lost its broker (the
link ends, and is recovered by the session), and one of its ``channel_errors`` when the broker refuses.
Retrying what may be retried is its own matter too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from greenconn.green.deadline import Deadline
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.publishing import Envelope
from greenconn.transport.virtual.state import Exchange

__all__ = ["Answer", "Claimed", "Entry", "Row", "Settlement", "Store"]


class Entry(NamedTuple):
    """A message on its way into one queue.

    Attributes:
        queue: its name.
        envelope: kombu's form; text for the body, unless the store takes bytes.
        priority: 0 is the lowest.
        delay: seconds before it may be claimed.
        lifetime: seconds until it need not be delivered any more; None: for ever.
    """

    queue: str
    envelope: Envelope
    priority: int = 0
    delay: float = 0.0
    lifetime: float | None = None


class Claimed(NamedTuple):
    """A message that was claimed.

    Attributes:
        queue: where it was.
        envelope: what was stored; None where that cannot be read, and ``raw`` is all there is.
        handle: what the store wants to see again when it is settled or renewed.
        deliveries: how often it was claimed before, as far as the store can tell.
        raw: what could not be read.
    """

    queue: str
    envelope: Envelope | None
    handle: Any
    deliveries: int = 0
    raw: bytes = b""


class Settlement(Enum):
    """What becomes of a claimed message."""

    DONE = "it was handled, or is of no use any more"
    BACK = "others may have it"
    REFUSED = "it was rejected, and no dead-letter exchange wants it"


class Answer(NamedTuple):
    """What is to be done with one claimed message.

    Attributes:
        delay: seconds before it may be claimed again, for BACK.
        entries: stored before the message is removed, at once with it where the store can: its
            copies for dead-letter queues.
    """

    handle: Any
    settlement: Settlement
    delay: float = 0.0
    entries: Sequence[Entry] = ()


class Row(NamedTuple):
    """A binding of a queue as stores share it: kombu's row, and the arguments of the binding."""

    routing_key: str
    pattern: str
    queue: str
    arguments: Mapping[str, Any] | None = None


class Store(ABC):
    """One connection to a broker.

    Arguments:
        client: the ``Connection`` whose host, login and options are used.
        wake: to be called when there may be something to claim, with the name of the queue, or None
            for any; from any greenlet of the hub, or the hub.  Never switches.
    """

    #: Seconds that a claim lasts; None: as long as the store's connection.
    lease: float | None = 30.0
    #: Messages that one claim may take.
    claim_limit: ClassVar[int] = 100
    #: Messages and bytes that one call may store.
    put_limit: ClassVar[int] = 100
    put_bytes: ClassVar[int] = 256 * 1024
    #: Calls that may store at the same time.
    put_calls: ClassVar[int] = 1
    #: Answers that one call may settle.
    settle_limit: ClassVar[int] = 100
    #: How bodies are stored; None: the store takes bytes.
    body_encoding: ClassVar[str | None] = "base64"
    #: Whether queues are looked for one by one, each claim waiting for its own (SQS), or together.
    claims_each_queue: ClassVar[bool] = False
    #: Whether exchanges and bindings are shared with other processes.
    shares_bindings: ClassVar[bool] = False

    def __init__(self, client: Any, wake: Callable[[str | None], None]) -> None:
        self.client = client
        self.wake = wake

    # -- life

    @abstractmethod
    def open(self, deadline: Deadline) -> None:
        """Connect and log in."""

    @abstractmethod
    def close(self) -> None:
        """Close in good order."""

    @abstractmethod
    def drop(self) -> None:
        """Let go of everything at once: the connection is lost, or the parent's.  Never switches."""

    # -- queues

    @abstractmethod
    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        """Make a queue; return how it was declared, which for an existing one may differ."""

    @abstractmethod
    def find_queue(self, name: str) -> Declaration | None:
        """Return how a queue was declared, as far as the store knows; None: there is none."""

    @abstractmethod
    def drop_queue(self, name: str) -> int:
        """Delete a queue, its messages and its bindings; return how many messages waited in it."""

    @abstractmethod
    def purge(self, name: str) -> int:
        """Delete the messages that wait in a queue and return how many there were."""

    @abstractmethod
    def size(self, name: str) -> int:
        """How many messages wait in a queue, perhaps about."""

    # -- exchanges and bindings, where they are shared

    def note_exchange(self, exchange: Exchange) -> None:  # noqa: B027
        """An exchange was declared."""

    def find_exchange(self, name: str) -> Exchange | None:
        """Return an exchange (without its bindings); None: there is none."""
        return None

    def drop_exchange(self, name: str) -> None:  # noqa: B027
        """Delete an exchange and its bindings."""

    def bind(self, exchange: str, row: Row) -> None:  # noqa: B027
        """Add a binding; again: changes nothing."""

    def unbind(self, exchange: str, row: Row) -> None:  # noqa: B027
        """Remove a binding; one that is not there is no error."""

    def rows(self, exchange: str) -> Sequence[Row]:
        """The bindings of an exchange.  Asked for each publish: the store keeps what it may keep."""
        return ()

    # -- messages

    @abstractmethod
    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Store messages, in order, and return for each why it was not stored; None: it was."""

    @abstractmethod
    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        """Claim messages, the oldest (of the highest priority) first.

        Arguments:
            wanted: queue -> how many may be taken from it; all above 0.
            wait: seconds that may pass when there is none; 0: return at once.  A store that cannot
                wait returns at once always, and calls ``wake`` when it is worth another claim.
        """

    def interrupt(self) -> None:  # noqa: B027
        """Let a claim that waits return: others are wanted now.  Never switches."""

    @abstractmethod
    def settle(self, answers: Sequence[Answer]) -> None:
        """Settle claimed messages.  One whose lease has ended is passed over."""

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Begin the leases of these anew; return those that were lost already."""
        return ()
