"""The port between the channels of this room and a broker: what a store must implement.

A *store* keeps queues of messages for many processes.  A process that wants a message *claims* it: the
message stays in the store, no other consumer gets it, and it is redelivered when its lease ends without
a renewal.  So a process that dies loses no message.

The methods that a store must define are abstract here; the optional ones do nothing here.

A store belongs to one link: it is opened once, then closed or lost.  All its methods may switch, and
are called by library greenlets, one for each kind of work (storing, claiming, settling, renewing),
at the same time: what must not be mixed on one connection is the store's matter.  None of them is
ever interrupted by a user's timeout or kill, but any may be ended by ``GreenletExit`` when the link
ends.  A store raises one of the transport's ``connection_errors`` when it has lost its broker (the
link ends, and is recovered by the session), and one of its ``channel_errors`` when the broker refuses.
Retrying what may be retried is its own matter too.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from greenconn.broker.envelope import Delivery, Envelope, joined
from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline

if TYPE_CHECKING:
    from greenconn.broker.exchanges import Topology, TopologyStore
    from greenconn.broker.queues import Declaration


class ConsumerRegistry:
    """The consumers of all links of a process to one broker."""

    def __init__(self) -> None:
        #: Queue -> owner -> how many consumers, and whether the one is exclusive.
        self._queues: dict[str, dict[str, tuple[int, bool]]] = {}

    def set_consumers(self, queue: str, owner: str, consumers: int, exclusive: bool) -> bool:
        """Note how many consumers of a queue a link has now; False: it may not."""
        owners = self._queues.setdefault(queue, {})
        others = {name: each for name, each in owners.items() if name != owner}
        if consumers and (any(alone for _, alone in others.values()) or (exclusive and others)):
            return False
        owners.pop(owner, None)
        if consumers:
            owners[owner] = (consumers, exclusive)
        if not owners:
            del self._queues[queue]
        return True

    def other_consumers(self, queue: str, owner: str) -> int:
        """Return the number of consumers that other links have."""
        owners = self._queues.get(queue, {})
        return sum(count for name, (count, _) in owners.items() if name != owner)

    def leave(self, owner: str) -> None:
        """Remove a link that has ended."""
        for queue, owners in list(self._queues.items()):
            owners.pop(owner, None)
            if not owners:
                del self._queues[queue]


logger = logging.getLogger("greenconn.broker")

#: Seconds that a link has to claim when a message has woken it alone, before another one is woken.
CLAIM_TIME: Final = 0.02


class NoQueue(Exception):
    """The queue that a message is for does not exist: the message is dropped, or was mandatory."""


class StaleRoute(Exception):
    """The exchanges have changed since the queue of a message was looked up: it is not stored."""


class QueueFull(Exception):
    """The queue that a message is for has as many as it may have, and refuses more."""


class LeaseExpired(RecoverableConnectionError):  # type: ignore[misc]
    """Others took this connection for dead, and removed what it had: it ends, and begins anew."""

    def __init__(
        self,
        text: str = "this connection gave no sign of life for longer than its lease (its process was "
        "suspended, or a handler blocked the hub), and others ended it: its exclusive queues "
        "and its consumers are gone, and are declared and started anew",
    ) -> None:
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        # amqp's errors are pickled with four arguments.
        return type(self), (self.reply_text,), self.__dict__


class Entry(Struct, frozen=True):
    """A message on its way into one queue.

    Attributes:
        queue: its name.
        envelope: kombu's form; the body is text (see ``body_encoding``), or bytes if the store takes
            those.  Envelopes are shared between entries: copy before you change one.
        priority: 0 is the lowest.
        delay: seconds before it may be claimed.
        lifetime: seconds until it need not be delivered any more; None: for ever.
        head: the envelope without its body as JSON text, for a store that ``keeps_body_apart``.
        version: of the exchanges, by which the queue was found, for a store whose topology has one: it
            stores the message while that is the version, and says :class:`StaleRoute` otherwise.  0:
            whatever the version is.
    """

    queue: str
    envelope: Envelope
    priority: int = 0
    delay: float = 0.0
    lifetime: float | None = None
    head: str = ""
    version: int = 0


class Claimed(Struct, frozen=True):
    """A message that was claimed.

    Attributes:
        queue: where it was.
        stored: the envelope, or its head as text, which is read when it is needed; None where there is
            none to read, and ``raw`` is all there is.
        handle: what the store wants to see again when it is settled or renewed.
        deliveries: how often it was claimed before, as far as the store can tell.
        raw: what could not be read, or the body to a head.
        dead: why the store gives it up (``expired``, ``maxlen``): it is not delivered, but goes to
            the dead-letter exchange of its queue, if there is one.  Such may be of queues that were
            not asked for.
        waiting: how many are left in the queue, where the store can tell that without another call,
            for ``basic_get``.
    """

    queue: str
    stored: Envelope | str | None
    handle: Any
    deliveries: int = 0
    raw: bytes = b""
    dead: str | None = None
    waiting: int | None = None

    @property
    def envelope(self) -> Envelope | None:
        """The envelope; None where it cannot be read."""
        stored = self.stored
        return joined(stored, self.raw) if isinstance(stored, str) else stored


class Settlement(Enum):
    """The settlement of a claimed message."""

    ACK = "it was handled, or is not needed any more"
    REQUEUE = "it becomes available to all consumers again"
    REJECT = "it was rejected, and its queue has no dead-letter exchange"


#: A message that the broker holds: claimed and not delivered, or delivered by a channel.
HeldMessage: TypeAlias = "Claimed | Delivery"


class SettleRequest(Struct, frozen=True):
    """The request to ack, requeue or reject one message that is held.

    Attributes:
        delay: seconds before it may be claimed again, for REQUEUE.
        entries: stored before the message is removed, at once with it where the broker can: its copies
            for dead-letter queues, or the one that is delivered after a delay.  One with an empty
            envelope is the message as it is.  If one is refused, the message stays: see
            :meth:`Store.unless_refused`.
        is_unseen: no handler has seen it, for REQUEUE: as if it had never been claimed, where the
            store can tell.
        is_unhandled: a consumer was given it, and no handler has begun with it, for REQUEUE: it is
            redelivered, but this delivery of it does not count.  A store that can keep the two apart
            notes the former with :func:`~greenconn.broker.envelope.mark_redelivered`.
    """

    message: HeldMessage
    settlement: Settlement
    delay: float = 0.0
    entries: Sequence[Entry] = ()
    is_unseen: bool = False
    is_unhandled: bool = False

    @property
    def handle(self) -> Any:
        """The handle that the store has given the message."""
        return self.message.handle

    @property
    def is_ack(self) -> bool:
        """Whether the message is only removed."""
        return self.settlement is Settlement.ACK and not self.entries


class Store(ABC):
    """One connection to a broker.

    Arguments:
        client: the ``Connection`` whose host, login and options are used.
        wake: to be called when there may be something to claim, with the name of the queue, or None
            for any; from any greenlet of the hub, or the hub.  Never switches.

    Attributes:
        owner: the unique name of this link, which declarations of exclusive queues contain.
        lost: to be called with the error when the broker was lost while there was no call.
            Never switches.
        registry: the consumers of this process.
        gone: to be called when a queue that others may consume from here turned out to be deleted,
            with its name.  Never switches.
        died: to be called with messages that the store has claimed because they are to be given up
            (see :class:`Claimed`), at any time.  Never switches.
    """

    #: Seconds that a claim lasts; None is as long as the store's connection, without renewal.
    lease: float | None = 30.0
    #: Whether the store of the next life of a connection can settle what this one has claimed.
    outlives_link: ClassVar[bool] = True
    #: Seconds that one claim may wait for messages; 0: the store cannot wait, and calls ``wake``.
    claim_wait: float = 0.0
    #: Messages that one claim may take.
    claim_limit: ClassVar[int] = 100
    #: Messages, and about how many bytes of them, that one call may store; a bigger one comes alone.
    put_limit: ClassVar[int] = 100
    put_bytes: ClassVar[int] = 256 * 1024
    #: Calls that may store at the same time; more than one gives up their order.
    put_calls: ClassVar[int] = 1
    #: Settlements that one call may settle.
    settle_limit: ClassVar[int] = 100
    #: How bodies are stored; None: the store takes bytes.
    body_encoding: str | None = "base64"
    #: Whether it stores the body as bytes, and the rest of the envelope as the text ``Entry.head``.
    keeps_body_apart: ClassVar[bool] = False
    #: Whether a delayed copy takes the place of its message in one step: a process that ends in between
    #: leaves neither both nor none.
    replaces_at_once: ClassVar[bool] = False
    #: Whether queues are looked for one by one, each claim waiting for its own (SQS), or together.
    claims_each_queue: ClassVar[bool] = False
    #: The exchanges and bindings that are shared with other processes; None: they are not.
    topology: TopologyStore | Topology | None = None

    def __init__(self, client: Any, wake: Callable[[str | None], None]) -> None:
        self.client = client
        self.wake = wake
        self.owner = ""
        self.registry = ConsumerRegistry()
        self.gone: Callable[[str], object] = _nothing
        self.lost: Callable[[BaseException], object] = _nothing
        self.died: Callable[[Sequence[Claimed]], object] = _nothing

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

    def queue_names(self) -> Collection[str] | None:
        """Return the names of the queues that exist; None: the store cannot list them."""
        return None

    @abstractmethod
    def drop_queue(self, name: str) -> int:
        """Delete a queue, its messages and its bindings; return how many messages waited in it.

        An auto-delete exchange that loses its last binding by that goes too.
        """

    def set_consumers(self, name: str, consumers: int, *, exclusive: bool = False) -> bool:
        """Set the number of consumers of a queue on this link; 0 for none.

        Arguments:
            exclusive: its one consumer wants to be the only one.

        Returns:
            Whether it may; False: others consume exclusively, or they consume and it wants to.  By
            default, and as with :meth:`other_consumers`, only the links of this process are known.
        """
        return self.registry.set_consumers(name, self.owner, consumers, exclusive)

    def other_consumers(self, name: str) -> int:
        """Return the number of consumers that other links have, as far as the store knows."""
        return self.registry.other_consumers(name, self.owner)

    @abstractmethod
    def purge(self, name: str) -> int:
        """Delete the messages that wait in a queue and return how many there were."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the number of messages that wait in a queue, perhaps approximately."""

    def counts(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        """Return :meth:`size` and :meth:`other_consumers` of queues; none of one that has ended."""
        return {name: (self.size(name), self.other_consumers(name)) for name in names}

    # -- messages

    @abstractmethod
    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Store messages, in order, and return for each why it was not stored; None: it was.

        Of those reasons :class:`NoQueue` and :class:`QueueFull` are understood; others are raised in
        the publisher.
        """

    @abstractmethod
    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        """Claim messages, the oldest (of the highest priority) first.

        Arguments:
            wanted: queue -> how many may be taken from it; all above 0.
            wait: seconds that may pass when there is none; 0: return at once (``basic_get``).  A
                store that cannot wait is not asked again for a queue of which it gave less than was
                wanted, until it calls ``wake``.
        """

    def interrupt(self) -> None:  # noqa: B027
        """Let a claim that waits return: others are wanted now.  Never switches."""

    def abandon(self, queue: str) -> None:  # noqa: B027
        """End the claim of *queue*, with ``claims_each_queue``: its messages are not wanted any more.

        Never switches.
        """

    def unconfirmed_claims(self) -> Sequence[tuple[str, Any]]:
        """Return queue and handle of messages that claims without a reply may have taken.

        Asked for when the link ends.  The next life of the connection requeues them as undelivered, so
        that they need not wait for the ends of their leases.
        """
        return ()

    @abstractmethod
    def settle(self, requests: Sequence[SettleRequest]) -> int | None:
        """Settle claimed messages.  One whose lease has ended is passed over.

        Returns:
            how many of those that were handled were passed over, where the store can tell.
        """

    def unless_refused(
        self, request: SettleRequest, outcomes: Sequence[Exception | None]
    ) -> SettleRequest:
        """Return *request* if its copies are stored, else one that requeues the message.

        It is redelivered, and rejected again, after a lease.  A queue that does not exist takes no
        copy, as no message that is published to it.

        Arguments:
            outcomes: of storing ``request.entries``.
        """
        for entry, error in zip(request.entries, outcomes, strict=True):
            if error is not None and not isinstance(error, NoQueue):
                self.log_refusal(entry.queue, error)
                delay = self.lease or 0.0
                return replace(request, settlement=Settlement.REQUEUE, delay=delay, entries=())
        return request

    def log_refusal(self, queue: str, error: Exception) -> None:
        """Log that a copy for *queue* was not stored."""
        logger.error(
            "%s: a dead letter for queue %r could not be stored, and is tried again in %g s: %s",
            self.client.as_uri(),
            queue,
            self.lease or 0.0,
            "the queue is full" if isinstance(error, QueueFull) else error,
            extra={"connection": self.client.as_uri(), "queue": queue},
        )

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Begin the leases of these anew; return those that were lost already.

        Called each third of a lease, also with nothing to renew: it says that this link lives.
        """
        return ()


def _nothing(what: object) -> None:
    pass


#: Takes the broker's reply to acks or rejects: None, the number of messages that it did not hold
#: any more, or an Exception.  Never switches.
Done = Callable[[Any], object]
