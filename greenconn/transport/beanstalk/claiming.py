"""Claims: as many jobs of each tube as its consumers have room for, and all tubes in turn.

beanstalkd hands out the oldest job of all watched tubes, so one tube with many would keep all others
waiting, and how many come from which cannot be known beforehand.  So tubes that had more the last time
(*hot* ones) are each watched alone for a moment, in turn, over the command connection, with no more
``reserve`` than there is room.  All others are watched together by the reserve connection, which waits;
the first job of one makes it hot.  A tube is asked for a few jobs first, and for twice as many each time
that it has all of them: one that gets a job now and then is not asked for a hundred.

Ending a wait
    beanstalkd reads nothing from a connection that waits in ``reserve``, and no other connection may
    settle the jobs that this one has reserved.  So it always watches one tube more, its own, with a
    single buried job: the wake-up job.  Kicked over the command connection it becomes ready, is the
    most urgent of all, and ends the wait; then it is buried again.  It is kicked only once the server
    has said that it is buried: a kick that came before that, as it is on another connection, would be
    lost, and the wait would last its whole time.  Kicking works even when the server takes no new
    jobs.  Commands are written at once all the same, behind the ``reserve`` that waits, and then the
    wake-up job is kicked.  The wake-up job of a process that was killed stays; the next connection of
    this kind deletes those that no connection watches.

Renewing reservations
    The channels renew their messages each third of a lease, which is right for jobs of ours.  Those of
    other programs may have a shorter time to run: they are touched as often as that demands.
"""

from __future__ import annotations

from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

from gevent.event import Event

from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import Ticker
from greenconn.transport.beanstalk.connection import (
    DEFAULT,
    CommandConnection,
    Job,
    LinkLost,
    Pipeline,
    ReplyCallback,
    ReservedJob,
    ignore_reply,
    whole_seconds,
)
from greenconn.wire.beanstalk import Reply, line, put

if TYPE_CHECKING:
    from greenconn.transport.beanstalk import BeanstalkStore
    from greenconn.wire.tls import TlsSession

#: Messages that one claim takes, and those that it asks a tube for first.
CLAIM: Final = 100
FIRST: Final = 4
#: Prefix of the tubes of wake-up jobs; no queue's tube has it.
WAKEUP_TUBES: Final = b"$wakeup."
#: Longest wait, in seconds, while there is no wake-up job.
UNINTERRUPTED_WAIT: Final = 1
#: Seconds that the wake-up job may stay reserved; it is buried at once.
WAKEUP_TIME_TO_RUN: Final = 60
#: Seconds between two attempts when a job of ours is about to come back.
SOON: Final = 0.25


class ReserveConnection(Pipeline):
    """A connection on which one greenlet at a time waits for jobs.

    Arguments:
        server: the command connection, over which the wake-up job is kicked.
        owner: names the wake-up job; must be unique.
        reservations: the jobs of the link, which are renewed when one is about to be lost.
    """

    def __init__(
        self,
        sock: RawSocket,
        where: str,
        on_lost: Callable[[LinkLost], None],
        tls: TlsSession | None,
        *,
        server: CommandConnection,
        owner: str,
        reservations: Reservations,
    ) -> None:
        super().__init__(sock, where, on_lost, tls)
        self.parser.longest_body = server.parser.longest_body
        self._server = server
        self._tube = WAKEUP_TUBES + owner.encode()
        self._reservations = reservations
        self._watched: set[bytes] = set()
        #: The number of the wake-up job; None: it could not be made.
        self._wakeup_job: int | None = None
        #: The server has said that it is buried.
        self._is_buried = False
        #: It was kicked, or will be once it is buried, and has not come yet.
        self._is_woken = False
        #: A ``reserve`` waits in the server.
        self._is_waiting = False
        self._pausing: Slot[None] | None = None

    def open(self, deadline: Deadline = NEVER) -> None:
        """Create the wake-up job, and delete those that no connection watches.  May switch."""
        tube = self._tube
        commands = [line(b"use", tube), line(b"watch", tube), line(b"ignore", DEFAULT)]
        commands.append(put(0, 0, WAKEUP_TIME_TO_RUN, b""))
        commands.append(line(b"reserve-with-timeout", 0))
        *_, made, reserved = self.ask(commands, deadline)
        if made.word == b"INSERTED" and reserved.word == b"RESERVED":
            self._bury(reserved.number)
        self._clear()

    def _clear(self) -> None:
        """Delete the wake-up jobs of connections that were lost."""
        server = self._server
        (listed,) = server.ask([line(b"list-tubes")])
        listed_lines = listed.body.split(b"\n")
        tubes = [text[2:] for text in listed_lines if text.startswith(b"- " + WAKEUP_TUBES)]
        replies = server.ask([line(b"stats-tube", tube) for tube in tubes])
        for tube, reply in zip(tubes, replies, strict=True):
            facts = server.read_counts(reply)
            if tube != self._tube and facts.get(b"current-watching") == b"0":
                server.kick(tube)
                server.empty(tube)
        server.ask(server.using(DEFAULT))  # a tube that is in use stays

    def leave(self) -> None:
        """Close the connection, and delete the wake-up job.  Never switches."""
        self.close()
        if self._wakeup_job is not None:
            self._server.post(line(b"delete", self._wakeup_job), ignore_reply)
            self._wakeup_job = None

    def watch_only(self, tubes: Iterable[bytes]) -> None:
        """Watch these tubes and no others from the next ``reserve`` on.  Never switches."""
        wanted = set(tubes)
        commands = [line(b"watch", tube) for tube in wanted - self._watched]
        commands += [line(b"ignore", tube) for tube in self._watched - wanted]
        self._watched = wanted
        if commands:
            self.post(b"".join(commands), *[ignore_reply] * len(commands))

    def ignore(self, tube: bytes) -> None:
        """Stop watching this one.  Never switches."""
        if tube in self._watched:
            self._watched.discard(tube)
            self.post_at_once(line(b"ignore", tube), ignore_reply)

    def reserve(self, seconds: float) -> Reply | None:
        """Reserve one job of the tubes that are watched.  May switch.

        Arguments:
            seconds: to wait for it; 0 does not wait.

        Returns:
            None: there was none, or the wait was interrupted.
        """
        wait = whole_seconds(seconds)
        if self._wakeup_job is None:
            wait = min(wait, UNINTERRUPTED_WAIT)
        while True:
            reply = self._ask(wait)
            if reply.word == b"DEADLINE_SOON":
                self._reservations.touch()
                if not wait or self._pause_for_command():
                    return None
            elif reply.word == b"TIMED_OUT":
                return None
            elif reply.word != b"RESERVED":
                raise self.refused(reply, "reserving")
            elif reply.number != self._wakeup_job:
                return reply
            else:
                self._is_woken = False
                self._bury(reply.number)
                if wait:
                    return None

    def _ask(self, wait: int) -> Reply:
        self._is_waiting = wait > 0
        self.extra_timeout = float(wait)
        try:
            (reply,) = self.ask([line(b"reserve-with-timeout", wait)])
        finally:
            self._is_waiting = False
            self.extra_timeout = 0.0
        return reply

    def _pause_for_command(self) -> bool:
        """Wait a little; return whether the wait was ended by :meth:`wake`.  May switch."""
        slot: Slot[None] = Slot()
        self._pausing = slot
        try:
            slot.wait(Deadline(SOON))
        except TimeoutError:
            return False
        finally:
            self._pausing = None
        return True

    def post_at_once(self, command: bytes, *callbacks: ReplyCallback) -> None:
        """Write commands; a wait ends, so that the server reads them.  Never switches."""
        self.post(command, *callbacks)
        self.wake()

    def wake(self) -> None:
        """End the wait in the server, if there is one.  Never switches."""
        if self._pausing is not None:
            self._pausing.offer(None)
        if self._is_waiting and not self._is_woken and self._wakeup_job is not None:
            self._is_woken = True
            if self._is_buried:
                self._kick(self._wakeup_job)

    def _bury(self, number: int) -> None:
        self._wakeup_job = number
        self._is_buried = False
        self.post(line(b"bury", number, 0), self._buried)

    def _buried(self, reply: Reply | BaseException) -> None:
        number = self._wakeup_job
        if number is None or self._is_refused(reply, b"BURIED"):
            return
        self._is_buried = True
        if self._is_woken:
            self._kick(number)

    def _kick(self, number: int) -> None:
        self._is_buried = False
        self._server.post(line(b"kick-job", number), self._kicked)

    def _kicked(self, reply: Reply | BaseException) -> None:
        self._is_refused(reply, b"KICKED")

    def _is_refused(self, reply: Reply | BaseException, wanted: bytes) -> bool:
        """Return whether a command for the wake-up job failed.  If it is gone, waits are short."""
        if not isinstance(reply, Reply):
            return True
        if reply.word == wanted:
            return False
        # The queue was deleted.
        self._wakeup_job = None
        self._is_woken = False
        return True


#: Touches in the time to run of a job.
TOUCHES: Final = 3


class Reservations:
    """The jobs of one link.  Nothing here switches.

    Arguments:
        lease: seconds; jobs with at least that time to run are renewed by others.
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._jobs: dict[Job, None] = {}
        self._ticker: Ticker | None = None

    def add(self, job: Job) -> None:
        """Add a job that was reserved."""
        self._jobs[job] = None
        if job.time_to_run < self._lease:
            interval = max(job.time_to_run, 1) / TOUCHES
            if self._ticker is None or self._ticker.interval > interval:
                self.stop()
                self._ticker = Ticker(interval, self._touch_short, "beanstalk-touch")
                self._ticker.start()

    def discard(self, jobs: Iterable[Job]) -> None:
        """Remove jobs that were settled or lost."""
        for job in jobs:
            self._jobs.pop(job, None)

    def touch(self) -> None:
        """Renew all reservations."""
        for job in self._jobs:
            # A lost one shows when it is settled.
            job.post(line(b"touch", job.number), ignore_reply)

    def stop(self) -> None:
        """Stop renewing those with a short time to run."""
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()

    def _touch_short(self, lag: float) -> None:
        # In the hub.
        short = [job for job in self._jobs if job.time_to_run < self._lease]
        if not short:
            self.stop()
        for job in short:
            job.post(line(b"touch", job.number), ignore_reply)


Reserved = tuple[Reply, Callable[..., None]]


class Claims:
    """The claims of one link.

    Arguments:
        store: has the connection that waits.
    """

    def __init__(self, store: BeanstalkStore, server: CommandConnection) -> None:
        self._store = store
        self._server = server
        #: Tubes that may have more, each with the jobs to ask for; served longest ago first.
        self._hot: dict[bytes, int] = {}
        #: Something else is wanted than the claim that is under way knows.
        self._is_stale = False
        #: The claim that is under way is over.
        self._is_over = Event()
        self._is_over.set()

    def interrupt(self) -> None:
        """Make a claim that waits, or is about to, return.  Never switches."""
        self._is_stale = True

    def wait_over(self) -> None:
        """Wait for the end of a claim that is under way.  May switch."""
        self._is_over.wait()

    def claim(self, wanted: Mapping[bytes, int], seconds: float) -> Sequence[ReservedJob]:
        """Reserve jobs; see :meth:`Store.claim`.  May switch."""
        server = self._server
        if seconds <= 0:
            server.wait_writable()
            taken = server.take(wanted.items())
            return server.describe([(reply, server.post) for reply in chain(*taken)])
        self._is_stale = False
        self._is_over = is_over = Event()
        try:
            return self._wait(wanted, seconds)
        finally:
            is_over.set()

    def _wait(self, wanted: Mapping[bytes, int], seconds: float) -> Sequence[ReservedJob]:
        """Take from the hot tubes, look at the others, and wait where there was nothing."""
        server, waiting = self._server, self._store.reserve_connection()
        server.wait_writable()
        hot = [tube for tube in self._hot if tube in wanted]
        found = self._take_hot(hot, wanted)
        if hot:
            cold = wanted.keys() - self._hot.keys()
            if cold:
                waiting.watch_only(cold)
                self._add(found, waiting, 0)
        if not found and not self._is_stale:
            waiting.watch_only(wanted)
            self._add(found, waiting, seconds)
        described = server.describe(found)
        for reserved in described:
            if reserved.job.post == waiting.post_at_once:
                self._hot.setdefault(reserved.tube, FIRST)
        return described

    def _take_hot(self, hot: list[bytes], wanted: Mapping[bytes, int]) -> list[Reserved]:
        """Take its share from each hot tube; one that gives less than was asked for is hot no more."""
        if not hot:
            return []
        share = max(CLAIM // len(hot), 1)
        shares = [(tube, min(wanted[tube], share, self._hot[tube])) for tube in hot[:CLAIM]]
        found: list[Reserved] = []
        for (tube, count), replies in zip(shares, self._server.take(shares), strict=True):
            asked = self._hot.pop(tube, FIRST)
            if len(replies) == count:
                self._hot[tube] = min(2 * asked, CLAIM)
            found += [(reply, self._server.post) for reply in replies]
        return found

    def _add(self, found: list[Reserved], waiting: ReserveConnection, seconds: float) -> None:
        reply = waiting.reserve(seconds)
        if reply is not None:
            found.append((reply, waiting.post_at_once))
