"""The directory of the queues of one link: who may use them, and which declarations are the same.

How a broker is asked for its queues is written in an adapter,
:class:`~greenconn.broker.queue_port.QueueStore`.
"""

from __future__ import annotations

from typing import Any, Protocol

from greenconn.broker.queue_port import KnownQueues, QueueStore, Rules
from greenconn.transport.refusal import (
    Method,
    check_equivalent,
    invalid_argument,
    locked,
    no_queue,
    reserved_name,
)
from greenconn.transport.virtual.declaration import (
    COMPARED_ARGUMENTS,
    UNDECLARED,
    Declaration,
    QueuePolicy,
)

__all__ = ["Directory", "DirectoryLink"]


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
    """The queues as one link knows them.

    Arguments:
        link: whose queues they are.
        queues: asks the broker.
        known: what was read of them; filled by *queues*.
        delivery_limit: of queues that do not say; None: no limit.
    """

    __slots__ = ("_declared", "_delivery_limit", "_known", "_link", "_own", "_queues", "_rules")

    def __init__(
        self,
        link: DirectoryLink,
        queues: QueueStore,
        known: KnownQueues,
        delivery_limit: int | None = None,
    ) -> None:
        self._link = link
        self._queues = queues
        self._known = known
        self._declared = known.declared
        self._rules = known.rules
        self._delivery_limit = delivery_limit
        #: Exclusive queues of this link, which it must delete.
        self._own: set[str] = set()

    @property
    def _vhost(self) -> str:
        return getattr(self._link.client, "virtual_host", None) or "/"

    # -- what is known

    def is_known(self, name: str) -> bool:
        """Return whether nothing need be asked to publish to a queue.  Never switches."""
        return name in self._declared

    def is_there(self, name: str) -> bool:
        """Return whether a queue exists, as far as is known here; else ask.  May switch."""
        return self._queues.is_there(name)

    def last(self, name: str) -> Declaration:
        """Return the declaration of a queue as it was read last.  Never switches."""
        return self._known.last(name)

    def declaration(self, name: str) -> Declaration:
        """Return the declaration of a queue as it is known, or read it now.  May switch."""
        declared = self._declared.get(name)
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
            if name in self._declared:
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
        declared = self._declared.get(name)
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
        if declared.owner is not None and declared.owner != self._link.owner:
            raise locked(name, self._vhost, method)
        return declared

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

    def counts(self, name: str) -> tuple[int, int]:
        """Return the numbers of a queue's waiting messages and consumers.  May switch."""
        return self._queues.counts(name)

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
