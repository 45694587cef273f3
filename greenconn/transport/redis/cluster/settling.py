"""Settling of messages that a cluster holds, each in its partition.

A dead letter may belong to a queue of another partition.  There it is stored first; then it is removed
where it was held.  Who ends in between leaves it in both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gevent import get_hub

from greenconn.broker.port import Entry
from greenconn.broker.settlement_port import Disposition, Done, HeldMessage
from greenconn.transport.redis.commands import call_together
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.fanout import topic_of
from greenconn.transport.redis.partition import Partition
from greenconn.transport.redis.settling import copies_of
from greenconn.transport.virtual.publishing import Envelope

if TYPE_CHECKING:
    from greenconn.transport.redis.cluster.placement import ClusterPlacement
    from greenconn.transport.redis.link import RedisLink


class _Parts:
    """The outcome of one call that was divided among partitions.

    Arguments:
        count: parts.
        complete: called when the last of them is there.  Never switches.

    Attributes:
        outcome: None, a number, or an Exception.
    """

    def __init__(self, count: int, complete: Callable[[], object]) -> None:
        self._left = count
        self._complete = complete
        self.outcome: Any = None

    @property
    def is_complete(self) -> bool:
        """Whether all parts are there."""
        return not self._left

    def note(self, outcome: Any) -> None:
        """Take the outcome of one part.  Never switches."""
        self._left -= 1
        if isinstance(outcome, Exception):
            self.outcome = outcome
        elif outcome is not None and not isinstance(self.outcome, Exception):
            self.outcome = outcome + (self.outcome or 0)
        if not self._left:
            self._complete()


class ClusterSettler:
    """See :class:`~greenconn.broker.settlement_port.MessageSettler`.

    Arguments:
        partitions: of the link.
        link: ends where the outcome of something is unknown.
    """

    ack_limit = 500
    outlives_link = True

    def __init__(self, partitions: ClusterPlacement, link: RedisLink) -> None:
        self._partitions = partitions
        self._link = link
        #: Acks without an outcome, in order.
        self._acks: deque[tuple[_Parts, Done]] = deque()

    @property
    def lease(self) -> float:
        """Seconds that a message is held without renewal."""
        return self._link.options.lease

    @property
    def renewal_interval(self) -> float:
        """Seconds between two renewals."""
        options = self._link.options
        return min(options.lease / 3, options.visibility_timeout / 4)

    def _divided(self, handles: Iterable[str]) -> dict[Partition, list[str]]:
        found: dict[Partition, list[str]] = {}
        for each in handles:
            found.setdefault(self._partitions.of_handle(each), []).append(each)
        return found

    def ack(self, handles: Sequence[Any], done: Done) -> None:
        """Tell that messages were handled.  Never switches."""
        divided = self._divided(handles)
        parts = _Parts(len(divided), self._acked)
        self._acks.append((parts, done))
        for partition, own in divided.items():
            partition.settler.ack(own, parts.note)

    def _acked(self) -> None:
        acks = self._acks
        while acks and acks[0][0].is_complete:
            parts, done = acks.popleft()
            done(parts.outcome)

    def parts(self, dispositions: Sequence[Disposition]) -> Iterable[Sequence[Disposition]]:
        """Cut what one turn has brought into what one call of a script takes."""
        divided: dict[Partition, list[Disposition]] = {}
        for each in dispositions:
            partition = self._partitions.of_handle(each.message.handle)
            divided.setdefault(partition, []).append(each)
        for partition, own in divided.items():
            yield from partition.settler.parts(own)

    def settle(self, dispositions: Sequence[Disposition], done: Done) -> None:
        """Put messages where they belong now, and wake those who wait for them.  Never switches."""
        partition = self._partitions.of_handle(dispositions[0].message.handle)
        local, elsewhere = [], []
        for each in dispositions:
            entries, others = self._split(partition, each.entries)
            local.append(each._replace(entries=entries) if others else each)
            elsewhere += [(each.message.raw, entry) for entry in others]
        if not elsewhere:
            partition.settler.settle(dispositions, done)
            return

        def stored() -> None:
            # In the reader.
            if isinstance(parts.outcome, Exception):
                done(parts.outcome)
            else:
                partition.settler.settle(local, done)

        parts = _Parts(len(elsewhere), stored)
        for raw, entry in elsewhere:
            commands = self._of(entry).commands
            for command in copies_of(commands.keys, raw, [entry]):
                commands.pipeline.post(
                    command,
                    lambda reply: parts.note(reply if isinstance(reply, Exception) else None),
                )

    def _of(self, entry: Entry) -> Partition:
        """Return the partition that stores a copy."""
        topic = topic_of(entry.queue)
        return self._partitions.of(entry.queue if topic is None else topic[0])

    def _split(
        self, partition: Partition, entries: Sequence[Entry]
    ) -> tuple[list[Entry], list[Entry]]:
        """Return the entries that belong to a partition, and the others."""
        local = [each for each in entries if self._of(each) is partition]
        return local, [each for each in entries if self._of(each) is not partition]

    def local_entries(
        self, partition: Partition, raw: bytes, entries: Sequence[Entry]
    ) -> Sequence[Entry]:
        """Store what belongs to other partitions, and return the rest.  May switch."""
        local, others = self._split(partition, entries)
        asked = []
        for each in others:
            commands = self._of(each).commands
            asked += [(commands, command) for command in copies_of(commands.keys, raw, [each])]
        call_together(asked, "storing dead letters")
        return local

    def return_unheld(self, delivery: Delivery) -> None:
        """Requeue a delivery that the server does not hold for us.  Never switches."""
        self._partitions.of(delivery.queue).settler.return_unheld(delivery)

    def unread(self, message: HeldMessage) -> Envelope:
        """Return an empty envelope: a message that cannot be read is moved as it is."""
        return {}

    def postpone(self, message: HeldMessage) -> None:
        """Leave a message held, until the lease is renewed."""

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew.  Never switches."""
        divided = self._divided(handles)
        for each in self._partitions.partitions():
            if each.is_kept_alive:
                divided.setdefault(each, [])
        if not divided:
            done(None)
            return
        parts = _Parts(len(divided), lambda: done(parts.outcome))
        for partition, own in divided.items():
            partition.settler.renew(own, parts.note)

    def unconfirmed_claims(self) -> Iterable[HeldMessage]:
        """Return what claims may have taken whose answers never came.  Never switches."""
        return [
            each
            for partition in self._partitions.partitions()
            for each in partition.settler.unconfirmed_claims()
        ]

    def reclaim(
        self,
        held: Sequence[HeldMessage],
        unhandled: Sequence[HeldMessage],
        unconfirmed: Sequence[HeldMessage],
    ) -> None:
        """Requeue what former lives held, and what they may have.  May switch."""
        divided: dict[Partition, tuple[list[HeldMessage], ...]] = {}
        for place, messages in enumerate((held, unhandled, unconfirmed)):
            for each in messages:
                partition = self._partitions.of_handle(each.handle)
                divided.setdefault(partition, ([], [], []))[place].append(each)
        for partition, parts in divided.items():
            partition.settler.reclaim(*parts)

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when all that can run now has run.  Never switches."""
        get_hub().loop.run_callback(callback)

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception for a reply that is one.  Never switches."""
        return self._partitions.commands.pipeline.error(outcome, what)

    def interrupted(self, exc: BaseException) -> None:
        """End the link, since the outcome of what was sent is unknown.  Never switches."""
        self._partitions.commands.pipeline.interrupted(exc)
