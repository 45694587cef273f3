"""A store over the hooks of channels.

Its messages are claimed by taking them out, and given back by putting them in again, so that it has no
leases: what a process holds that is killed is lost.  A broker of hooks cannot say that it has something,
so it is asked.  A claim looks into all queues whose consumers have room, in turn, and goes on while it
finds something.  What is found is handed over at once: the next look may wait.  When nothing was found,
the next claim comes after the polling interval, or when this process publishes or has room again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from greenconn.broker.port import Claimed, Entry, Settlement, SettleRequest, Store
from greenconn.exceptions import RecoverableConnectionError, error_text
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.ticker import Ticker
from greenconn.transport.hooks.qos import dump_messages
from greenconn.transport.virtual.declaration import UNDECLARED, Declaration
from greenconn.transport.virtual.publishing import Envelope

if TYPE_CHECKING:
    from greenconn.transport.hooks.link import HookedLink


logger = logging.getLogger("greenconn.transport.virtual")

#: Seconds that a hook may wait where the transport has no interval: others want to be looked for, too.
POLL_TIMEOUT: Final = 1.0
#: Seconds of looking without a wait before the hub gets a turn.
PACE: Final = 0.005


class TakenMessage(Protocol):
    """A message that was taken out: what claims hand over, and what is settled."""

    @property
    def is_noted(self) -> bool:
        """Whether a ``QoS`` has it, which puts it back in the end."""

    @property
    def claimed(self) -> Claimed:
        """The claim of the store."""

    @property
    def link(self) -> object:
        """The link that took it out."""

    @property
    def is_gone_from_broker(self) -> bool:
        """Whether we must requeue it."""

    @property
    def queue(self) -> str | None:
        """The queue that it was taken out of."""

    def serializable(self) -> Envelope:
        """Return the envelope with which it can be put back."""

    def settle(self, settlement: Settlement) -> None:
        """Tell the hooks what becomes of it.  May switch."""


class Errors(Protocol):
    """The errors of a client library."""

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]: ...


class HookStore(Store):
    """The hooks of the channels of one link.

    Arguments:
        client: the ``Connection``.
        wake: see :class:`~greenconn.broker.port.Store`.
        interval: seconds between two looks when there was nothing; None and 0: the looks themselves
            wait.

    Attributes:
        link: has the channels with the hooks.
    """

    lease = None
    #: All queues are looked for together; a look takes what the hooks give.
    claim_limit: ClassVar[int] = 1_000_000
    #: One that finds the broker lost must not be repeated with others.
    settle_limit: ClassVar[int] = 1
    #: Channels encode by themselves.
    body_encoding = None

    link: HookedLink

    def __init__(
        self, client: Any, wake: Callable[[str | None], None], interval: float | None
    ) -> None:
        super().__init__(client, wake)
        self.interval = interval
        #: What was taken out when no consumer had room.
        self._arrived: dict[str, deque[TakenMessage]] = {}
        #: Queue -> how many messages are still wanted by the claim that is under way.
        self._wanted: dict[str, int] = {}
        self._has_come = False
        self._ticker: Ticker | None = None
        self._turned_at = 0.0

    # -- life

    def open(self, deadline: Deadline) -> None:
        """Do nothing: the transport connects, if anything does."""

    def close(self) -> None:
        """Look no more."""
        self.drop()

    def drop(self) -> None:
        """Look no more.  Never switches."""
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()
        self._arrived.clear()
        self._wanted = {}

    @property
    def is_waiting(self) -> bool:
        """Whether it looks again when the interval is over."""
        return self._ticker is not None

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        """Make a queue."""
        self.link.hooks(name)._new_queue(
            name,
            durable=declaration.durable,
            exclusive=declaration.owner is not None,
            auto_delete=declaration.auto_delete,
            arguments=declaration.arguments,
        )
        return declaration

    def find_queue(self, name: str) -> Declaration:
        """Return a declaration that says nothing: no hook tells how a queue was declared."""
        return UNDECLARED

    def drop_queue(self, name: str) -> int:
        """Delete a queue, and return how many messages waited in it."""
        size = self.size(name)
        self.link.hooks(name)._delete(name)
        return size

    def purge(self, name: str) -> int:
        """Delete the messages that wait in a queue and return how many there were."""
        return int(self.link.hooks(name)._purge(name) or 0)

    def size(self, name: str) -> int:
        """Return the number of messages that wait in a queue."""
        return int(self.link.hooks(name)._size(name))

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Put messages in."""
        for entry in entries:
            self.link.hooks(entry.queue)._put(entry.queue, entry.envelope)
        return [None] * len(entries)

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        """Return what waited for room, else poll as long as something comes: it is handed over at once.

        Raises:
            RecoverableConnectionError: a hook failed; who cannot be asked is lost.
        """
        found = self._take_arrived(wanted)
        if found or self._poll(wanted):
            self.wake(None)  # a poll takes from one queue, and others may have messages, too
        elif not self.interval:
            yield_to_hub()
            self.wake(None)
        elif self._ticker is None:
            self._ticker = Ticker(self.interval, self._tick, "polling")
            self._ticker.start()
        return found

    def _poll(self, wanted: Mapping[str, int]) -> bool:
        """Poll until nothing comes or it is the others' turn; False: nothing came at all."""
        if monotonic() - self._turned_at > PACE:
            yield_to_hub()
            self._turned_at = monotonic()
        left = self._wanted = dict(wanted)
        timeout = self.interval or POLL_TIMEOUT
        has_come = False
        try:
            while left:
                self._has_come = False
                self.link.poll(left, timeout)
                if not self._has_come:
                    break
                has_come = True
                if monotonic() - self._turned_at > PACE:
                    break
        except Exception as exc:
            if isinstance(exc, self.link.transport.connection_errors):
                raise
            raise RecoverableConnectionError(f"polling failed: {error_text(exc, repr)}") from exc
        return has_come

    def _tick(self, lag: float) -> None:
        # In the hub.
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()
            self.wake(None)

    def arrive(self, message: TakenMessage, queue: str) -> None:
        """Hand over what a hook has taken out of *queue*.  Never switches."""
        self._has_come = True
        feed = self.link.feeds.get(queue)
        if feed is None:
            # Its consumer was cancelled while the broker was asked.
            self.link.settlements.requeue_unseen(message.claimed)
        elif queue in self._arrived or not feed.offer(message.claimed):
            self._arrived.setdefault(queue, deque()).append(message)
            self.wake(queue)
        left = self._wanted.get(queue, 0) - 1
        if left > 0:
            self._wanted[queue] = left
        else:
            self._wanted.pop(queue, None)

    def _take_arrived(self, wanted: Mapping[str, int]) -> list[Claimed]:
        found: list[Claimed] = []
        for queue in [each for each in self._arrived if each in wanted]:
            messages = self._arrived[queue]
            taken = min(wanted[queue], len(messages))
            found.extend(messages.popleft().claimed for _ in range(taken))
            if not messages:
                del self._arrived[queue]
        return found

    def retire(self, queue: str) -> None:
        """Give back what was taken out for consumers that are gone.  Never switches."""
        for message in self._arrived.pop(queue, ()):
            self.link.settlements.requeue_unseen(message.claimed)

    def unconfirmed_claims(self) -> Sequence[tuple[str, Any]]:
        """Return queue and message of what was taken out when no consumer had room."""
        return [(queue, each) for queue, found in self._arrived.items() for each in found]

    def settle(self, requests: Sequence[SettleRequest]) -> int:
        """Requeue messages that no handler has seen, whose channel has ended, or of a former life."""
        for request in requests:
            message: TakenMessage = request.handle
            is_former = message.link is not self.link
            try:
                if not is_former:
                    message.settle(request.settlement)
                elif request.settlement is Settlement.REQUEUE and message.is_gone_from_broker:
                    self.link.put_back(message)
            except Exception as exc:
                if not is_former and isinstance(exc, self.link.transport.connection_errors):
                    raise  # the next life tries once more
                logger.error("a message could not be requeued: %s", error_text(exc, repr))
                if is_former or not message.is_noted:
                    dump_messages([message])
        return 0
