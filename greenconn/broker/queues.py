"""The queues of one link: their names and declarations, and who may use them.

A declaration is what a broker keeps of a queue for all programs.  A broker marks exclusive queues and
consumers with the owner, a link, and the lease of that owner says how long others must assume that it is
alive.  No link waits for the lease of one that was lost in this very process.

How a broker is asked for its queues is written in an adapter, a :class:`QueueStore`.  It has no rules of
its own.  What it reads it notes in :class:`KnownQueues`, as far as it may be remembered.
"""

from __future__ import annotations

import base64
import os
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeGuard, TypeVar

from greenconn.broker.errors import (
    Method,
    check_equivalent,
    invalid_argument,
    locked,
    no_queue,
    reserved_name,
)
from greenconn.jsoncodec import dumps, loads

if TYPE_CHECKING:
    from greenconn.broker.link import BrokerLink, StoreLink


def is_name(value: object) -> TypeGuard[str]:
    """Return whether *value*, which a stranger may have written, can name something."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a character
        return False
    return True


def generated_name(prefix: str) -> str:
    """Return a unique name as a server makes it: *prefix* and 22 random letters."""
    return prefix + base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


#: Owners that are remembered: their leases are over long before so many more have come.
_MOST: Final = 10_000

#: The owners whose links have ended in this process.
_lost: deque[str] = deque(maxlen=_MOST)


def new_owner() -> str:
    """Return a name that no other link has."""
    return os.urandom(8).hex()


def note_lost(owner: str) -> None:
    """Note that the link of *owner* has ended in this process.  Never switches."""
    _lost.append(owner)


def is_lost(owner: str | None) -> bool:
    """Return whether the link of *owner* has ended in this process.  Never switches."""
    return owner is not None and owner in _lost


class DeadLetterTarget(NamedTuple):
    """The target of a queue's dead letters.

    Attributes:
        routing_key: None keeps the message's own.
    """

    exchange: str
    routing_key: str | None


OVERFLOWS = ("drop-head", "reject-publish", "reject-publish-dlx")
QUEUE_TYPES = ("classic", "quorum")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuePolicy:
    """The rules of one queue.  None: no such rule."""

    #: The arguments that say them.
    ARGUMENTS: ClassVar[frozenset[str]] = frozenset(
        {
            "x-dead-letter-exchange",
            "x-dead-letter-routing-key",
            "x-expires",
            "x-max-length",
            "x-max-length-bytes",
            "x-max-priority",
            "x-message-ttl",
            "x-overflow",
            "x-single-active-consumer",
        }
    )

    message_ttl: float | None = None  # seconds that a message may wait; 0 only for a free consumer
    expires: float | None = None  # seconds without use after which the queue is deleted; above 0
    max_length: int | None = None  # messages that may wait
    max_length_bytes: int | None = None  # bytes of bodies that may wait
    overflow: str = "drop-head"  # what happens to a message that is too many
    dead_letter_exchange: str | None = None  # "" is the default exchange
    dead_letter_routing_key: str | None = None  # None keeps the message's own
    max_priority: int | None = None  # None: a queue without priorities
    is_single_active: bool = False  # only the oldest consumer is served

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> QueuePolicy:
        """Read the ``x-`` arguments of a declaration.

        Raises:
            ValueError: says which argument cannot be.
        """
        ttl_ms = _number(arguments, "x-message-ttl")
        expires_ms = _number(arguments, "x-expires", least=1)
        target = arguments.get("x-dead-letter-exchange")
        if target is None and arguments.get("x-dead-letter-routing-key") is not None:
            raise ValueError("invalid arg 'x-dead-letter-routing-key': no dead-letter exchange")
        _one_of(arguments, "x-queue-type", QUEUE_TYPES)
        return cls(
            message_ttl=None if ttl_ms is None else ttl_ms / 1000,
            expires=None if expires_ms is None else expires_ms / 1000,
            max_length=_number(arguments, "x-max-length"),
            max_length_bytes=_number(arguments, "x-max-length-bytes"),
            overflow=_one_of(arguments, "x-overflow", OVERFLOWS) or "drop-head",
            dead_letter_exchange=target,
            dead_letter_routing_key=arguments.get("x-dead-letter-routing-key"),
            max_priority=_number(arguments, "x-max-priority", most=255),
            is_single_active=bool(arguments.get("x-single-active-consumer")),
        )

    def dead_letter_target(self, queue: str, default: str | None) -> DeadLetterTarget | None:
        """Return where the dead letters of *queue* go; None: they are dropped.

        Arguments:
            default: the queue for those of queues that name no exchange; None: there is none.
        """
        if self.dead_letter_exchange is not None:
            return DeadLetterTarget(self.dead_letter_exchange, self.dead_letter_routing_key)
        return None if default is None or default == queue else DeadLetterTarget("", default)

    @property
    def is_bounded(self) -> bool:
        """Whether there is a limit of length."""
        return self.max_length is not None or self.max_length_bytes is not None

    @property
    def refuses_overflow(self) -> bool:
        """Whether a message that is too many is refused, rather than the oldest dropped."""
        return self.is_bounded and self.overflow != "drop-head"

    def is_above(self, count: int, size: int) -> bool:
        """Return whether *count* messages of *size* bytes together are too many."""
        return (self.max_length is not None and count > self.max_length) or (
            self.max_length_bytes is not None and size > self.max_length_bytes
        )


#: Queue arguments that a second declaration must repeat.
COMPARED_ARGUMENTS: Final = QueuePolicy.ARGUMENTS | {"x-delivery-limit"}


def _number(
    arguments: Mapping[str, Any], name: str, *, least: int = 0, most: int | None = None
) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"invalid arg '{name}': {value!r} is not an integer")
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"invalid arg '{name}': {value} is not {bounds}")
    return value


def _one_of(arguments: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str | None:
    value = arguments.get(name)
    if value is not None and value not in known:
        raise ValueError(f"invalid arg '{name}': {value!r} is not one of {', '.join(known)}")
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """The declaration of a queue.

    Attributes:
        owner: the link that it is exclusive to; None for all.
    """

    durable: bool = False
    auto_delete: bool = False
    owner: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: bytes) -> Declaration:
        """Read what the server keeps; a text that cannot be read says nothing."""
        try:
            kept = loads(text)
            owner = kept["owner"]
            if not isinstance(owner, (str, type(None))):
                return cls()
            return cls(
                durable=bool(kept["durable"]),
                auto_delete=bool(kept["auto_delete"]),
                owner=owner,
                arguments=dict(kept["arguments"]),
            )
        except (ValueError, LookupError, TypeError, RecursionError):
            return cls()

    def text(self) -> str:
        """Return the form in which the server keeps it."""
        return dumps(
            {
                "durable": self.durable,
                "auto_delete": self.auto_delete,
                "owner": self.owner,
                "arguments": dict(self.arguments),
            }
        )

    @property
    def policy(self) -> QueuePolicy:
        """The policy of its arguments; those of foreign programs may be of any kind."""
        try:
            return QueuePolicy.of(self.arguments)
        except (ValueError, OverflowError):
            return QueuePolicy()

    def delivery_limit(self, default: int | None) -> int | None:
        """Return the delivery limit; None: no limit.

        Arguments:
            default: what counts where it does not say, or nothing that can be.
        """
        limit = self.arguments.get("x-delivery-limit")
        if isinstance(limit, bool) or not isinstance(limit, int):
            return default
        return None if limit < 0 else limit  # RabbitMQ's -1 is no limit

    @property
    def expires_ms(self) -> int | None:
        """Milliseconds without use after which the queue is deleted; None: never."""
        seconds = self.policy.expires
        return None if seconds is None else int(seconds * 1000)


#: A queue of which nothing is known but that it is there: who declares it says what it is.
UNDECLARED: Final = Declaration()
T = TypeVar("T")

#: Queues that a link remembers.
MOST_KNOWN: Final = 100_000


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
    def counts(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        """Return the numbers of waiting messages and of consumers; none of a queue that has ended."""

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


class Directory:
    """The queues as one link knows them.

    Arguments:
        link: whose queues they are.
        queues: asks the broker.
        known: what was read of them; filled by *queues*.
        delivery_limit: of queues that do not say; None: no limit.
    """

    def __init__(
        self,
        link: BrokerLink,
        queues: QueueStore,
        known: KnownQueues,
        delivery_limit: int | None = None,
    ) -> None:
        self._link = link
        self._queues = queues
        self._known = known
        #: Queue -> its declaration, as it is known: nothing need be asked to publish to it.
        self.declared: Mapping[str, Declaration] = known.declared
        self._rules = known.rules
        self._delivery_limit = delivery_limit
        #: Exclusive queues of this link, which it must delete.
        self._own: set[str] = set()

    @property
    def _vhost(self) -> str:
        return getattr(self._link.client, "virtual_host", None) or "/"

    # -- what is known

    def is_there(self, name: str) -> bool:
        """Return whether a queue exists, as far as is known here; else ask.  May switch."""
        return self._queues.is_there(name)

    def last(self, name: str) -> Declaration:
        """Return the declaration of a queue as it was read last.  Never switches."""
        return self._known.last(name)

    def declaration(self, name: str) -> Declaration:
        """Return the declaration of a queue as it is known, or read it now.  May switch."""
        declared = self.declared.get(name)
        if declared is None:
            declared = self.find(name)
        return UNDECLARED if declared is None else declared

    def rules(self, name: str) -> Rules:
        """Return the rules of a queue.  May switch where they are not known."""
        rules = self._rules.get(name)
        if rules is None:
            declared = self.declaration(name)
            policy = declared.policy
            rules = Rules(
                policy.message_ttl,
                policy.max_priority,
                declared.delivery_limit(self._delivery_limit),
                policy.is_single_active,
            )
            if name in self.declared:
                self._rules[name] = rules
        return rules

    def delivery_limit(self, name: str) -> int | None:
        """Return the delivery limit of a queue, as far as it is known.  Never switches."""
        rules = self._rules.get(name)
        if rules is None:
            return self._known.last(name).delivery_limit(self._delivery_limit)
        return rules.delivery_limit

    def is_single_active(self, name: str) -> bool:
        """Return whether only the oldest consumer of a queue is served.  Never switches."""
        rules = self._rules.get(name)
        return rules is not None and rules.is_single_active

    def forget(self, name: str) -> None:
        """Note that a queue may have changed: ask when it is next needed.  Never switches."""
        self._known.forget(name)

    def ended(self, name: str) -> None:
        """Note that a queue is gone.  Never switches."""
        self._known.ended(name)
        self._own.discard(name)

    # -- looking up and declaring

    def settle(self) -> None:
        """Wait until earlier changes by this link are visible to all clients.  May switch."""
        self._queues.settle()

    def find(self, name: str) -> Declaration | None:
        """Ask the broker for a queue; None when there is none.  May switch."""
        return self._queues.find(name)

    def check_name(self, name: str, method: Method) -> None:
        """See that a queue may have this name.  Never switches.

        Raises:
            AccessRefused: it is reserved.
        """
        self._queues.check_name(name, method)

    def _current(self, name: str) -> Declaration | None:
        """Return a queue as it may be taken to be now; None when there is none.  May switch."""
        declared = self.declared.get(name)
        if declared is not None and self._queues.is_current(name):
            return declared
        return self._queues.find(name)

    def check(self, name: str, method: Method) -> Declaration:
        """See that a queue exists and may be used here.  May switch where that is not known.

        Raises:
            NotFound: there is no such queue.
            ResourceLocked: it is exclusive to another connection.
            AccessRefused: the name is reserved.
        """
        self._queues.check_name(name, method)
        declared = self._current(name)
        if declared is None:
            raise no_queue(name, self._vhost, method)
        self.check_owner(name, declared, method)
        return declared

    def check_owner(self, name: str, declared: Declaration, method: Method) -> None:
        """See that a queue is not exclusive to another connection.  Never switches.

        Raises:
            ResourceLocked: it is.
        """
        if declared.owner is not None and declared.owner != self._link.owner:
            raise locked(name, self._vhost, method)

    def declare_passively(self, name: str) -> None:
        """See that a queue exists; it counts as used.  May switch.

        Raises:
            NotFound, ResourceLocked, AccessRefused: as :meth:`check`.
        """
        self.check(name, Method.QUEUE_DECLARE)
        self._queues.touch(name)

    def declare(self, name: str, declared: Declaration) -> None:
        """Make a queue, or check that the existing one is the same.  May switch.

        Raises:
            PreconditionFailed: it differs from the existing one, or an argument cannot be.
            ResourceLocked: it is exclusive to another connection, or only one of the two is exclusive.
            AccessRefused: the name is reserved.
        """
        method = Method.QUEUE_DECLARE
        self._queues.check_name(name, method)
        try:
            QueuePolicy.of(declared.arguments)
        except ValueError as exc:
            text = f"{exc} (queue '{name}' in vhost '{self._vhost}')"
            raise invalid_argument(text, method) from exc
        current = self._current(name)
        if current is None and name.startswith("amq.") and not name.startswith("amq.gen-"):
            raise reserved_name("queue", name, method)
        if current is None or current is UNDECLARED:
            if declared.owner is not None and not self._queues.ends_exclusive:
                self._own.add(name)
            current = self._queues.make(name, declared)
        if current.owner != declared.owner:
            if declared.owner is not None:
                self._own.discard(name)  # declared by another client: not ours to delete
            raise locked(name, self._vhost, method)
        check_equivalent(
            "queue",
            name,
            self._vhost,
            method,
            fields={
                "durable": (declared.durable, current.durable),
                "auto_delete": (declared.auto_delete, current.auto_delete),
            },
            arguments=(declared.arguments, current.arguments),
            compared=COMPARED_ARGUMENTS,
        )
        self._queues.touch(name)

    def names(self) -> list[str]:
        """Return the names of the queues that exist, in order.  May switch.

        Raises:
            NotImplementedError: the broker cannot list them.
        """
        names = self._queues.names()
        if names is None:
            raise NotImplementedError(f"{self._link.client.as_uri()}: cannot list queues")
        return sorted(names)

    # -- use and its end

    def counts(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        """Return the numbers of waiting messages and of consumers of queues.  May switch.

        One that has ended has none.
        """
        return self._queues.counts(names)

    def purge(self, name: str) -> int:
        """Drop the messages that wait in a queue, and return how many there were.  May switch."""
        return self._queues.purge(name)

    def drop(self, name: str) -> int:
        """Delete a queue, and return how many messages it had.  May switch."""
        self._queues.check_name(name, Method.QUEUE_DELETE)
        self.forget(name)
        count = self._queues.drop(name)
        self.ended(name)  # it may have been looked up in the meantime
        return count

    def close(self) -> None:
        """Delete the exclusive queues of this link.  May switch."""
        for name in list(self._own):
            self.drop(name)


class StoredQueues(QueueStore):
    """The queues of a store.

    Where it matters that a queue is there, the store is asked; what does not change as long as it is
    there (its arguments) is remembered.

    Arguments:
        link: asks the store.
        known: gets what was read.
    """

    def __init__(self, link: StoreLink, known: KnownQueues) -> None:
        self._link = link
        self._known = known

    def settle(self) -> None:
        self._link.catch_up()

    def find(self, name: str) -> Declaration | None:
        link = self._link
        declared = link.ask("looking up a queue", link.store.find_queue, name)
        if declared is not None and is_lost(declared.owner):
            self.drop(name)  # its lease was ours, and is not waited for
            declared = None
        if declared is None:
            self._known.ended(name)
        else:
            self._known.remember(name, declared)
        return declared

    def is_there(self, name: str) -> bool:
        return name in self._known.declared or self.find(name) is not None

    def make(self, name: str, declared: Declaration) -> Declaration:
        link = self._link
        kept = link.ask("declaring a queue", link.store.make_queue, name, declared)
        self._known.remember(name, kept)
        return kept

    def counts(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        link = self._link
        counts = dict(link.ask("counting messages", link.store.counts, names))
        for name in counts.keys() & link.feeds.keys():
            size, others = counts[name]
            counts[name] = size, others + len(link.feeds[name].consumers)
        return counts

    def names(self) -> Collection[str] | None:
        return self._link.ask("listing queues", self._link.store.queue_names)

    def purge(self, name: str) -> int:
        return int(self._link.ask("purging a queue", self._link.store.purge, name))

    def drop(self, name: str) -> int:
        link = self._link
        link.state.queue_bindings_delete(name)
        return int(link.ask("deleting a queue", link.store.drop_queue, name))
