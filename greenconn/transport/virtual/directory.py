"""What one link knows of the queues that its broker keeps for several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenconn.transport.refusal import (
    Method,
    check_equivalent,
    invalid_argument,
    locked,
    no_queue,
    reserved_name,
)
from greenconn.transport.virtual.declaration import UNDECLARED, Declaration
from greenconn.transport.virtual.policy import COMPARED_ARGUMENTS, QueuePolicy

if TYPE_CHECKING:
    from greenconn.transport.virtual.shared import SharingLink

__all__ = ["Directory"]


class Directory:
    """The queues as one link knows them; transports write how the broker is asked."""

    __slots__ = ("_link", "_own")

    _link: SharingLink

    def __init__(self) -> None:
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
        """How many messages wait in a queue, and how many consumers it has.  May switch."""
        raise NotImplementedError

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
