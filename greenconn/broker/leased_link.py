"""A link whose broker holds messages for it: what its channels hold, and its end.

A link that is closed requeues before what its channels hold.  What one that is lost has left is handed
over to the next life of the connection.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from greenconn.broker.base_link import BrokerLink
from greenconn.broker.channel import StoreChannel
from greenconn.broker.handover import Handover
from greenconn.broker.leases import Leases
from greenconn.broker.port import Entry
from greenconn.broker.settlement_port import HeldDelivery, MessageSettler
from greenconn.broker.settlements import Settlements
from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline, TimeLimit
from greenconn.transport.virtual.names import note_lost
from greenconn.transport.virtual.publishing import Envelope


class LeasedLink(BrokerLink):
    """A link whose broker holds messages.

    Arguments:
        client: the connection's facade.
        where: the broker's URL with the password masked, for messages.
        options: of the transport.
        handover: gets what this life leaves, and the acks that come after it.

    Attributes:
        is_inherited: this process is a child of the one that opened it.
        leases: those of the messages that it holds.
        settler: sends the broker what becomes of them.
    """

    settler: MessageSettler
    settlements: Settlements
    leases: Leases
    #: Seconds that ``close`` waits for the broker.
    close_timeout: ClassVar[float | None]
    #: Errors with which a close is over all the same: what is held is requeued when the leases end.
    close_errors: tuple[type[BaseException], ...] = (OSError, RecoverableConnectionError)

    def __init__(self, client: Any, where: str, options: Any, handover: Handover) -> None:
        super().__init__(client)
        self.where = where
        self.options = options
        self.handover = handover
        self.is_inherited = False

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<connection {self.where} ({state}, {len(self.channels)} channels)>"

    @property
    def place(self) -> object:
        """The broker that this link leads to; two links to one broker have equal places."""
        return type(self), self.where

    # -- what it holds

    def held(self) -> Iterator[HeldDelivery]:
        """Yield all that its channels hold.  Never switches."""
        for channel in list(self.channels.values()):
            if isinstance(channel, StoreChannel):
                yield from list(channel.deliveries.unacked.values())

    def note_late(self, count: int) -> None:
        """Note that so many messages were settled too late.  Never switches."""
        self.leases.note_late(count)

    def flush_settlements(self, deadline: Deadline) -> None:
        """Return when the broker has all acks and requeues.  May switch.

        A claim that is on its way may bring messages that no consumer takes any more: they are
        requeued, too.

        Raises:
            TimeoutError, RecoverableConnectionError: as :meth:`wait_settled`.
        """
        if self.lost is None:
            deadline = deadline.within(self.options.reply_timeout)
            self._wait_claims(deadline)
            self.wait_settled(deadline)

    @abstractmethod
    def _wait_claims(self, deadline: Deadline) -> None:
        """Wait for the ends of the claims of queues that have no consumer any more.  May switch."""

    def wait_settled(self, deadline: Deadline) -> None:
        """Return when all acks and rejects up to now have left.  May switch.

        Raises:
            TimeoutError: they had not before the deadline, or within ``reply_timeout``.
            RecoverableConnectionError: the link was lost meanwhile.
        """
        if self.lost is not None:
            return
        deadline = deadline.within(self.options.reply_timeout)
        try:
            self.settlements.wait_routed(deadline)
            self.settlements.flush()
            self._wait_sent(deadline)
        except TimeoutError as exc:
            raise TimeoutError(f"{self.where} did not accept all acks and rejects in time") from exc

    @abstractmethod
    def _wait_sent(self, deadline: Deadline) -> None:
        """Wait until what the settlements have sent has left.  May switch."""

    @abstractmethod
    def entries(self, envelope: Envelope, queues: Sequence[str]) -> Sequence[Entry]:
        """Return a message on its way into *queues*.  May switch where a queue is not known."""

    @abstractmethod
    def failed(self, exc: BaseException, what: str) -> object:
        """Log that a call to the broker failed, and end the link if that ends it.  Never switches."""

    # -- the end

    def close(self) -> None:
        """Requeue what is not settled, and close.  May switch."""
        if self.lost is not None:
            return
        self.hub_affinity.check(self)
        try:
            with TimeLimit(Deadline(self.close_timeout), "closing"):
                self._stop_claiming()
                for channel in list(self.channels.values()):
                    channel.close()
                self._take_leave()
        except self.close_errors:
            pass
        finally:
            super().close()

    def _stop_claiming(self) -> None:
        """Take no more messages.  May switch."""

    @abstractmethod
    def _take_leave(self) -> None:
        """Tell the broker all that it must know before the link is closed.  May switch."""

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life.  Never switches."""
        if self.lost is not None:
            return
        self.handover.take(self)
        note_lost(self.owner)
        super().end(exc, closed=closed)
        self._stop(self._gone_error(exc))

    def forget(self, exc: BaseException) -> None:
        """Forget it in the child of a fork: the parent owns it."""
        super().forget(exc)
        self.is_inherited = True
        # Its greenlets are copied too: none may go on reading what the parent waits for.
        self._stop(self._gone_error(exc))

    @staticmethod
    def _gone_error(exc: BaseException) -> BaseException:
        """Return the error for those who wait for a link that *exc* has ended."""
        gone: BaseException = RecoverableConnectionError(f"connection is closed ({exc})")
        gone.__cause__ = exc
        return gone

    def _stop(self, gone: BaseException) -> None:
        """End what goes by a clock or in a greenlet of the link.  Never switches.

        Arguments:
            gone: what those who wait for it get.
        """
        self.leases.stop()
        self.settlements.stop(gone)
