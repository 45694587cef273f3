"""A directory of the queues that a broker keeps for several processes.

Where it matters that a queue is there, the broker is asked; what does not change as long as it is there
(its arguments) is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from greenconn.broker.options import StoreOptions
from greenconn.broker.port import Store
from greenconn.transport.refusal import (
    Method,
    check_equivalent,
    invalid_argument,
    locked,
    no_queue,
    reserved_name,
)
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.declaration import UNDECLARED, Declaration
from greenconn.transport.virtual.owners import is_lost
from greenconn.transport.virtual.policy import COMPARED_ARGUMENTS, QueuePolicy
from greenconn.transport.virtual.state import BrokerState

__all__ = ["ConsumedQueue", "Directory", "DirectoryLink", "Rules", "StoreDirectory"]

T = TypeVar("T")

#: Queues that a link remembers.
MOST_KNOWN: Final = 100_000


class DirectoryLink(Protocol):
    """The link that knows the queues.

    Attributes:
        owner: under which it has exclusive queues.
    """

    @property
    def client(self) -> Any: ...
    @property
    def owner(self) -> str: ...


class Directory:
    """The queues as one link knows them; transports write how the broker is asked.

    Arguments:
        link: whose queues they are.
    """

    __slots__ = ("_link", "_own")

    _link: DirectoryLink

    def __init__(self, link: DirectoryLink) -> None:
        self._link = link
        #: Exclusive queues of this link.
        self._own: set[str] = set()

    @property
    def _vhost(self) -> str:
        return getattr(self._link.client, "virtual_host", None) or "/"

    # -- what a transport writes

    def settle(self) -> None:
        """Wait until what this link did before counts for whoever asks now.  May switch."""
        raise NotImplementedError

    def find(self, name: str) -> Declaration | None:
        """Ask the broker for a queue; None when there is none.  May switch."""
        raise NotImplementedError

    def _current(self, name: str) -> Declaration | None:
        """A queue as it may be taken to be now; None when there is none.  May switch."""
        return self.find(name)

    def _make(self, name: str, declared: Declaration) -> Declaration:
        """Let the broker keep *declared* unless somebody was quicker; what it keeps.  May switch."""
        raise NotImplementedError

    def counts(self, name: str) -> tuple[int, int]:
        """Return the numbers of a queue's waiting messages and consumers.  May switch."""
        raise NotImplementedError

    def touch(self, name: str) -> None:
        """A queue was declared: its time without use begins anew.  Never switches."""

    def purge(self, name: str) -> int:
        """Drop the messages that wait in a queue, and return how many there were.  May switch."""
        raise NotImplementedError

    def drop(self, name: str) -> int:
        """Delete a queue, and return how many messages it had.  May switch."""
        raise NotImplementedError

    # -- looking up and declaring

    def check_name(self, name: str, method: Method) -> None:
        """See that a queue may have this name.  Never switches.

        Raises:
            AccessRefused: it is reserved.
        """

    def check(self, name: str, method: Method) -> Declaration:
        """See that a queue exists and may be used here.  May switch where that is not known.

        Raises:
            NotFound: there is no such queue.
            ResourceLocked: it is exclusive to another connection.
            AccessRefused: the name is reserved.
        """
        self.check_name(name, method)
        declared = self._current(name)
        if declared is None:
            raise no_queue(name, self._vhost, method)
        if declared.owner is not None and declared.owner != self._link.owner:
            raise locked(name, self._vhost, method)
        return declared

    def declare_passively(self, name: str) -> None:
        """See that a queue exists; it counts as used.  May switch.

        Raises:
            NotFound, ResourceLocked, AccessRefused: as :meth:`check`.
        """
        self.check(name, Method.QUEUE_DECLARE)
        self.touch(name)

    def declare(self, name: str, declared: Declaration) -> None:
        """Make a queue, or check that the existing one is the same.  May switch.

        Raises:
            PreconditionFailed: it differs from the existing one, or an argument cannot be.
            ResourceLocked: it is exclusive to another connection, or only one of the two is exclusive.
            AccessRefused: the name is reserved.
        """
        method = Method.QUEUE_DECLARE
        self.check_name(name, method)
        try:
            QueuePolicy.of(declared.arguments)
        except ValueError as exc:
            text = f"{exc} (queue '{name}' in vhost '{self._vhost}')"
            raise invalid_argument(text, method) from exc
        current = self._current(name)
        if current is None and name.startswith("amq.") and not name.startswith("amq.gen-"):
            raise reserved_name("queue", name, method)
        if current is None or current is UNDECLARED:
            if declared.owner is not None:
                self._own.add(name)
            current = self._make(name, declared)
        if current.owner != declared.owner:
            if declared.owner is not None:
                self._own.discard(name)  # somebody was quicker: it is not for this link to delete
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
        self.touch(name)

    def close(self) -> None:
        """Delete the exclusive queues of this link.  May switch."""
        for name in list(self._own):
            self.drop(name)


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


class ConsumedQueue(Protocol):
    """The feed of one queue, as the directory sees it."""

    @property
    def consumers(self) -> Collection[Consumer]: ...


class StoreDirectoryLink(DirectoryLink, Protocol):
    """The link to a store."""

    @property
    def options(self) -> StoreOptions: ...
    @property
    def store(self) -> Store: ...
    @property
    def state(self) -> BrokerState: ...
    @property
    def feeds(self) -> Mapping[str, ConsumedQueue]: ...

    def ask(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Return what a method of the store returns.  May switch."""

    def catch_up(self) -> None:
        """Wait until the store knows what was answered and left.  May switch."""


class StoreDirectory(Directory):
    """The queues of a store."""

    __slots__ = ("_known", "_rules")

    _link: StoreDirectoryLink

    def __init__(self, link: StoreDirectoryLink) -> None:
        super().__init__(link)
        self._known: dict[str, Declaration] = {}
        self._rules: dict[str, Rules] = {}

    def look(self, name: str) -> Declaration:
        """Return the declaration of a queue as it was read last, or read it now.  May switch."""
        declared = self._known.get(name)
        if declared is None:
            declared = self.find(name)
        return UNDECLARED if declared is None else declared

    def is_known(self, name: str) -> bool:
        """Whether nothing need be asked to publish to a queue.  Never switches."""
        return name in self._rules

    def is_there(self, name: str) -> bool:
        """Whether a queue exists, as far as is known here; else the store says.  May switch."""
        return name in self._known or self.find(name) is not None

    def rules(self, name: str) -> Rules:
        """The rules of a queue.  May switch where they are not known."""
        rules = self._rules.get(name)
        if rules is None:
            declared = self.look(name)
            policy = declared.policy
            rules = Rules(
                policy.message_ttl,
                policy.max_priority,
                declared.delivery_limit(self._link.options.delivery_limit),
                policy.is_single_active,
            )
            if name in self._known:
                self._rules[name] = rules
        return rules

    def delivery_limit(self, name: str) -> int | None:
        """Return the delivery limit of a queue, as far as it is known.  Never switches."""
        rules = self._rules.get(name)
        return self._link.options.delivery_limit if rules is None else rules.delivery_limit

    def is_single_active(self, name: str) -> bool:
        """Whether only the oldest consumer of a queue is served.  Never switches."""
        rules = self._rules.get(name)
        return rules is not None and rules.is_single_active

    # -- looking up

    def settle(self) -> None:
        """Wait until what this link did before counts for whoever asks now.  May switch."""
        self._link.catch_up()

    def find(self, name: str) -> Declaration | None:
        """Ask the store for a queue; None when there is none.  May switch."""
        link = self._link
        declared: Declaration | None = link.ask("looking up a queue", link.store.find_queue, name)
        if declared is not None and is_lost(declared.owner):
            self.drop(name)  # its lease was ours, and is not waited for
            declared = None
        if declared is None:
            self.forget(name)
        else:
            self._remember(name, declared)
        return declared

    def _remember(self, name: str, declared: Declaration) -> None:
        if self._known.get(name) == declared:
            return
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
            self._rules.clear()
        self._known[name] = declared
        self._rules.pop(name, None)

    def forget(self, name: str) -> None:
        """Ask again when it is next needed.  Never switches."""
        self._known.pop(name, None)
        self._rules.pop(name, None)

    # -- declaring

    def _make(self, name: str, declared: Declaration) -> Declaration:
        link = self._link
        kept: Declaration = link.ask("declaring a queue", link.store.make_queue, name, declared)
        self._remember(name, kept)
        return kept

    def declare(self, name: str, declared: Declaration) -> None:
        """Make a queue, or check that the existing one is the same.  May switch.

        Raises:
            ChannelError: see the base class.
        """
        super().declare(name, declared)
        self.rules(name)

    # -- use and its end

    def counts(self, name: str) -> tuple[int, int]:
        """Return the numbers of a queue's waiting messages and consumers.  May switch."""
        link = self._link
        size = link.ask("counting messages", link.store.size, name)
        others = link.ask("counting consumers", link.store.others, name)
        feed = link.feeds.get(name)
        return int(size), int(others) + (len(feed.consumers) if feed is not None else 0)

    def purge(self, name: str) -> int:
        """Drop the messages that wait in a queue, and return how many there were.  May switch."""
        return int(self._link.ask("purging a queue", self._link.store.purge, name))

    def drop(self, name: str) -> int:
        """Delete a queue, and return how many messages it had.  May switch."""
        link = self._link
        self.forget(name)
        self._own.discard(name)
        link.state.queue_bindings_delete(name)
        count = link.ask("deleting a queue", link.store.drop_queue, name)
        self.forget(name)
        return int(count)
