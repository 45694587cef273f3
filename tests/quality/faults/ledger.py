"""What was published, and what became of it.

Each publisher is a *stream* of numbered messages; a body names its stream and number and carries a
checksum.  A message is *sent* when its publish has returned, *unconfirmed* when that raised: the broker
may have it or not.  At the end:

- each sent message was handled; those that are not are lost;
- a message was handled twice only if it was marked as redelivered, or if there was a fault between the
  begin of its publish and the second time: then it was sent again, or the broker forgot that it had
  delivered it;
- without faults each stream was handled in its order.

A queue that is deleted takes messages along: what was begun to be published before that was done is
*excused*.  A consumer that needs no ack may lose what is under way to it when a fault comes: such
messages are *dropped*, and counted apart.
"""

from __future__ import annotations

import random
import string
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic

from gevent.event import Event

#: Seconds for which a settled message is remembered one by one.
MEMORY = 60.0
#: Seconds for which a fault may go on to be felt: a silent connection is given up after so long at most.
AFTERMATH = 30.0
#: One message of so many has a large body.
LARGE_EVERY = 200


def body_of(stream: int, number: int, chance: random.Random) -> str:
    """The body of a message."""
    size = chance.randrange(30_000, 300_000) if chance.randrange(LARGE_EVERY) == 0 else 40
    padding = chance.choice(string.ascii_letters) * chance.randrange(size)
    text = f"{stream}.{number}.{padding}"
    return f"{zlib.crc32(text.encode()):08x}.{text}"


def key_of(body: object) -> tuple[int, int] | None:
    """The stream and the number of a message; None of a body that is not what was published."""
    checksum, _, text = str(body).partition(".")
    if checksum != f"{zlib.crc32(text.encode()):08x}":
        return None
    stream, number, _ = text.split(".", 2)
    return int(stream), int(number)


@dataclass(slots=True)
class Entry:
    """One message.

    Attributes:
        begun_at: when its publish began.
        is_sent: its publish has returned.
        is_over: it has returned, or raised.
        count: how often it was handled.
    """

    begun_at: float
    is_sent: bool = False
    is_over: bool = False
    is_excused: bool = False
    count: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it must still be handled."""
        return self.is_sent and not self.count and not self.is_excused


@dataclass(slots=True)
class Stream:
    """The messages of one publisher, all to one queue.

    Attributes:
        is_acked: its consumers acknowledge.
    """

    number: int
    queue: str
    is_acked: bool = True
    entries: dict[int, Entry] = field(default_factory=dict)
    #: All before it are settled, and forgotten.
    floor: int = 0
    next: int = 0
    highest: int = -1

    def begin(self) -> int:
        """Take the next number, for a message whose publish begins."""
        number = self.next
        self.next += 1
        self.entries[number] = Entry(monotonic())
        return number

    def reach(self, number: int) -> None:
        """Another process has begun to publish the message of that number."""
        while self.next <= number:
            self.begin()

    def forget(self, before: float) -> None:
        """Forget what was settled before that."""
        while (entry := self.entries.get(self.floor)) is not None:
            if entry.begun_at > before or entry.is_open or not entry.is_over:
                return
            del self.entries[self.floor]
            self.floor += 1


class Ledger:
    """All streams of a run.

    Attributes:
        sent, unconfirmed, handled: messages; *handled* counts each once.
        redelivered: handled again, and so marked.
        repeated: handled again without a mark, which a fault explains.
        unexplained: handled again, and no fault explains it.
        disordered: handled after a later one of their stream, without a fault.
        spoiled: bodies that are not what was published.
        recoveries: for each fault that was alone the longest time in seconds from its end until a
            message that was begun after it was handled, of the queue for which that took longest.
        longest_recovery: the same of all faults, alone or not.
        longest_after: that fault and that queue.
        is_whole: all queues have recovered from all faults.
    """

    def __init__(self, is_ordered: bool) -> None:
        self._is_ordered = is_ordered
        self.streams: list[Stream] = []
        self.sent = self.unconfirmed = self.handled = 0
        self.redelivered = self.repeated = self.unexplained = 0
        self.disordered = self.spoiled = 0
        self.longest_recovery = 0.0
        self.longest_after = ""
        self.recoveries: dict[str, float] = {}
        self.is_whole = Event()
        self.is_whole.set()
        self.errors: Counter[str] = Counter()
        self.notes: deque[str] = deque(maxlen=50)
        self._faults = 0
        self._last_fault_at = float("-inf")
        #: The fault that ended last, and the queues that have not recovered since.
        self._recovering: tuple[str, str, set[str]] = ("", "", set())

    def stream(self, queue: str, is_acked: bool = True) -> Stream:
        """Begin a stream of messages to *queue*."""
        made = Stream(len(self.streams), queue, is_acked)
        self.streams.append(made)
        return made

    # -- faults

    def fault_begins(self) -> None:
        """From now on a message may come twice."""
        self._faults += 1
        self.is_whole.clear()

    def fault_ended(self, fault: str, queues: set[str], alone: str = "") -> None:
        """*queues* shall recover from now on.

        Arguments:
            alone: under which name the recovery is noted; none when other faults came with it.
        """
        self._faults -= 1
        self._last_fault_at = monotonic()
        self._recovering = (fault, alone, set(queues))

    def give_up(self) -> None:
        """Wait no longer for those that have not recovered: it took at least until now."""
        fault, alone, queues = self._recovering
        for queue in sorted(queues):
            self._note_recovery(fault, alone, queue, monotonic())
        self._recovering = ("", "", set())
        self.is_whole.set()

    def excuse(self, queue: str) -> None:
        """*queue* was deleted: what was in it, or on its way to it, need not come."""
        for stream in self.streams:
            if stream.queue == queue:
                for entry in stream.entries.values():
                    entry.is_excused = True

    # -- publishers

    def published(self, stream: Stream, number: int) -> None:
        """The publish of a message has returned."""
        entry = stream.entries[number]
        entry.is_sent = entry.is_over = True
        self.sent += 1
        if number % 100 == 0:
            stream.forget(monotonic() - MEMORY)

    def failed(self, stream: Stream, number: int, error: str) -> None:
        """The publish of a message has raised an error of that name."""
        stream.entries[number].is_over = True
        self.unconfirmed += 1
        self.errors[error] += 1

    # -- consumers

    def handle(self, queue: str, body: object, is_redelivered: bool) -> None:
        """A message was handled."""
        key = key_of(body)
        self.handle_key(queue, key, is_redelivered)
        if key is None:
            self.notes.append(f"{queue}: not what was published: {str(body)[:60]!r}")

    def handle_key(self, queue: str, key: tuple[int, int] | None, is_redelivered: bool) -> None:
        """A message was handled whose body has that key."""
        now = monotonic()
        if key is None or key[0] >= len(self.streams):
            self.spoiled += 1
            return
        stream = self.streams[key[0]]
        number = key[1]
        stream.reach(number)
        entry = stream.entries.get(number)
        if entry is None or entry.count:
            begun_at = 0.0 if entry is None else entry.begun_at
            self._handled_again(stream, number, begun_at, is_redelivered)
        else:
            self.handled += 1
            if self._is_ordered and number < stream.highest:
                self.disordered += 1
                self.notes.append(f"{queue}: {number} of {stream.number} after {stream.highest}")
            stream.highest = max(stream.highest, number)
            self._recovered(queue, entry.begun_at, now)
        if entry is not None:
            entry.count += 1

    def _handled_again(
        self, stream: Stream, number: int, begun_at: float, is_redelivered: bool
    ) -> None:
        if is_redelivered:
            self.redelivered += 1
        elif self._faults or self._last_fault_at + AFTERMATH >= begun_at:
            self.repeated += 1
        else:
            self.unexplained += 1
            self.notes.append(f"{stream.queue}: {number} of {stream.number} again, for no reason")

    def _recovered(self, queue: str, begun_at: float, now: float) -> None:
        fault, alone, queues = self._recovering
        if self._faults or queue not in queues or begun_at < self._last_fault_at:
            return
        queues.remove(queue)
        self._note_recovery(fault, alone, queue, now)
        if not queues:
            self.is_whole.set()

    def _note_recovery(self, fault: str, alone: str, queue: str, now: float) -> None:
        took = now - self._last_fault_at
        if alone:
            self.recoveries[alone] = max(self.recoveries.get(alone, 0.0), took)
        if took > self.longest_recovery:
            self.longest_recovery = took
            self.longest_after = f"{fault}, {queue}"

    # -- the balance

    def missing(self) -> list[tuple[Stream, int]]:
        """The messages that were sent, not handled, and for whose loss there is no excuse."""
        return [
            (stream, number)
            for stream, number in self._open()
            if not self._may_drop(stream, number)
        ]

    def dropped(self) -> int:
        """How many messages were lost by consumers that need no ack, by a fault."""
        return sum(self._may_drop(stream, number) for stream, number in self._open())

    def are_open(self) -> bool:
        """Whether any message that was sent was not handled yet."""
        return any(True for _ in self._open())

    def _open(self) -> Iterator[tuple[Stream, int]]:
        for stream in self.streams:
            for number, entry in stream.entries.items():
                if entry.is_open:
                    yield stream, number

    def _may_drop(self, stream: Stream, number: int) -> bool:
        begun_at = stream.entries[number].begun_at
        return not stream.is_acked and begun_at <= self._last_fault_at + AFTERMATH
