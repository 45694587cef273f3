"""The adapter from a store whose calls block to the port of the broker.

A greenlet calls ``settle`` of the store.  It runs behind all that can run when the first ack or reject
of a turn comes, so that those of the other greenlets go with it, in one call.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from greenconn.broker.port import Claimed, Settlement, SettleRequest
from greenconn.broker.settlement_port import Disposition, Done, HeldMessage
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Progress
from greenconn.green.supervisor import OnDemand
from greenconn.identity import uuid
from greenconn.jsoncodec import dumps
from greenconn.transport.virtual.publishing import Envelope

if TYPE_CHECKING:
    from greenconn.broker.link import StoreLink


class _SettleBatch:
    """Settlements of one call: the number that the store has not got yet, and its callback."""

    __slots__ = ("done", "late", "left")

    def __init__(self, count: int, done: Done) -> None:
        self.left = count
        self.done = done
        self.late = 0


class StoreSettler:
    """See :class:`~greenconn.broker.settlement_port.MessageSettler`."""

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._store = link.store
        #: To be called when the turn ends.
        self._due: list[Callable[[], None]] = []
        #: Requests, the queues that may have messages then, and their group, in order;
        #: what is on its way stays in front until it has arrived.
        self._pending: deque[tuple[SettleRequest, Iterable[str], _SettleBatch]] = deque()
        self._settling = OnDemand("settle", self._settle)
        self._progress = Progress()
        #: So many in front were refused together: they are sent one by one.
        self._alone = 0
        self._renewals: deque[tuple[Sequence[Any], Done]] = deque()
        self._renewing = OnDemand("renew", self._renew)

    @property
    def lease(self) -> float | None:
        """Seconds that a claim lasts; None: as long as the store's connection."""
        return self._store.lease

    @property
    def renewal_interval(self) -> float | None:
        """Seconds between two renewals."""
        lease = self._store.lease
        return None if lease is None else lease / 3

    @property
    def ack_limit(self) -> int:
        """Handles that one call may have."""
        return self._store.settle_limit

    @property
    def outlives_link(self) -> bool:
        """Whether the next life of a connection can settle what this one has claimed."""
        return self._store.outlives_link

    @property
    def is_busy(self) -> bool:
        """Whether some requests have not reached the store."""
        return self._settling.greenlet is not None

    # -- see :class:`~greenconn.broker.settlement_port.MessageSettler`

    def ack(self, handles: Sequence[Any], done: Done) -> None:
        """Acknowledge messages.  Never switches."""
        part = _SettleBatch(len(handles), done)
        self._pending += [(SettleRequest(each, Settlement.ACK), (), part) for each in handles]
        self._settling.start()

    def parts(self, dispositions: Sequence[Disposition]) -> Iterable[Sequence[Disposition]]:
        """Cut what one turn has brought into what one call may settle."""
        limit = self._store.settle_limit
        return [dispositions[at : at + limit] for at in range(0, len(dispositions), limit)]

    def settle(self, dispositions: Sequence[Disposition], done: Done) -> None:
        """Put messages where they belong now, and wake those who wait for them.  Never switches."""
        part = _SettleBatch(len(dispositions), done)
        for each in dispositions:
            message, settlement, delay, entries, is_unseen, is_unhandled = each
            request = SettleRequest(
                message.handle, settlement, delay, entries, is_unseen, is_unhandled
            )
            queues = [entry.queue for entry in entries]
            if settlement is Settlement.REQUEUE:
                queues.append(message.queue)
            self._pending.append((request, queues, part))
        self._settling.start()

    def return_unheld(self, delivery: Any) -> None:
        """Do nothing: its lease has ended, so that it is back."""

    def unread(self, message: HeldMessage) -> Envelope:
        """Return an envelope with what cannot be read as its body."""
        body = message.raw or dumps(message.envelope).encode()
        encoding = self._store.body_encoding
        return {
            "body": b2a_base64(body, newline=False).decode() if encoding else body,
            "content-type": None,
            "content-encoding": None,
            "headers": {},
            "properties": {"body_encoding": encoding, "delivery_tag": uuid()},
        }

    def postpone(self, message: HeldMessage) -> Disposition:
        """Requeue a message after a lease; it is dead-lettered again then."""
        return Disposition(message, Settlement.REQUEUE, delay=self._store.lease or 0.0)

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew.  Never switches."""
        self._renewals.append((handles, done))
        self._renewing.start()

    def unconfirmed_claims(self) -> Iterable[HeldMessage]:
        """Return messages that claims without a reply may have taken.  Never switches."""
        return [Claimed(queue, None, handle) for queue, handle in self._store.unconfirmed_claims()]

    def reclaim(
        self,
        held: Sequence[HeldMessage],
        unhandled: Sequence[HeldMessage],
        unconfirmed: Sequence[HeldMessage],
    ) -> None:
        """Requeue what former lives held, and what they may have claimed.  Never switches."""
        dispositions = [Disposition(each, Settlement.REQUEUE) for each in held]
        dispositions += [
            Disposition(each, Settlement.REQUEUE, is_unhandled=True) for each in unhandled
        ]
        dispositions += [
            Disposition(each, Settlement.REQUEUE, is_unseen=True) for each in unconfirmed
        ]
        self._link.settlements.take_over((), dispositions)

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when all that can run now has run.  Never switches."""
        self._settling.start()
        self._due.append(callback)

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return *outcome*, which is never a failure: those are logged where they come from."""
        return outcome

    def interrupted(self, exc: BaseException) -> None:
        """End the link.  Never switches."""
        self._link.failed(exc, "settling messages")

    # -- the store's side

    def wait(self, deadline: Deadline = NEVER) -> None:
        """Wait until the store has all acks and rejects up to now.  May switch.

        Raises:
            TimeoutError: it was not before the deadline.
            RecoverableConnectionError: the link went first.
        """
        self._progress.wait(len(self._pending), deadline)

    def stop(self, exc: BaseException) -> None:
        """End, since the link is gone.  Never switches."""
        self._progress.fail(exc)
        self._pending.clear()
        self._renewals.clear()
        self._settling.end()
        self._renewing.end()

    def _settle(self) -> None:
        # It runs behind all that could run when it was started: their acks leave with these.
        while (self._due or self._pending) and self._link.lost is None:
            due, self._due = self._due, []
            for callback in due:
                callback()
            if self._pending:
                self._settle_batch()

    def _settle_batch(self) -> None:
        """Settle as many requests as one call may have.  May switch."""
        link = self._link
        count = 1 if self._alone else min(len(self._pending), self._store.settle_limit)
        batch = [self._pending[n] for n in range(count)]
        late: int | None = None
        try:
            late = self._store.settle([request for request, _, _ in batch])
        except BaseException as exc:
            link.failed(exc, "settling messages")
            if not isinstance(exc, Exception):
                raise
            if link.lost is not None:
                return
            if count > 1:
                self._alone = count  # one that is refused must not harm the others
                return
        if link.lost is not None:
            return  # with the reply: the next life settles again what this one held
        self._alone = max(self._alone - 1, 0)
        batch[-1][2].late += late or 0
        for _ in batch:
            self._pending.popleft()
        try:
            for _, _, part in batch:
                part.left -= 1
                if not part.left:
                    part.done(part.late or None)
        finally:
            self._progress.advance(count)
        for queue in {queue for _, queues, _ in batch for queue in queues}:
            link.wake(queue)

    def _renew(self) -> None:
        while self._renewals and self._link.lost is None:
            handles, done = self._renewals.popleft()
            gone: Sequence[Any] = ()
            try:
                gone = self._store.renew(handles)
            except BaseException as exc:
                self._link.failed(exc, "renewing leases")
                if not isinstance(exc, Exception):
                    raise
            done(gone)
