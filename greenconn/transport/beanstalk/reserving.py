"""The connection that waits for jobs of many tubes, and the wake-up job that ends its wait.

beanstalkd reads nothing from a connection that waits in ``reserve``, and no other connection may
settle what that one has reserved.  So it always watches one tube more, its own, with a single buried
job: the wake-up job.  Kicked over the command connection it becomes ready, is the most urgent of all,
and ends the wait; then it is buried again.  Kicking works even when the server takes no new jobs.

Commands are written at once all the same, behind the ``reserve`` that waits, and then the wake-up job
is kicked.  That of a process that was killed stays; the next connection of this kind deletes those
that nobody watches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Slot
from greenconn.transport.beanstalk.commands import DEFAULT, CommandConnection, whole_seconds
from greenconn.transport.beanstalk.pipeline import Pipeline, Place, ignore_reply
from greenconn.wire.beanstalk import Reply, line, put

__all__ = ["ReserveConnection"]

#: Prefix of the tubes of wake-up jobs; no queue's tube has it.
WAKEUP_TUBES: Final = b"$wakeup."
#: Longest wait, in seconds, while there is no wake-up job.
UNINTERRUPTED_WAIT: Final = 1
#: Seconds that the wake-up job may stay reserved; it is buried at once.
WAKEUP_TIME_TO_RUN: Final = 60
#: Seconds between two attempts when a job of ours is about to come back.
SOON: Final = 0.25


class ReserveConnection:
    """A connection on which one greenlet at a time waits for jobs.

    Arguments:
        server: the command connection, over which the wake-up job is kicked.
        owner: names the wake-up job; must be unique.
        renew: renews all reservations of this connection.  Never switches.
    """

    def __init__(
        self, pipeline: Pipeline, server: CommandConnection, owner: str, renew: Callable[[], None]
    ) -> None:
        self.pipeline = pipeline
        self._server = server
        self._tube = WAKEUP_TUBES + owner.encode()
        self._renew = renew
        self._watched: set[bytes] = set()
        #: The number of the wake-up job; None: it could not be made.
        self._wakeup_job: int | None = None
        #: It was kicked, and has not come yet.
        self._is_woken = False
        #: A ``reserve`` waits in the server.
        self._is_waiting = False
        self._pausing: Slot[None] | None = None

    def open(self, deadline: Deadline = NEVER) -> None:
        """Make the wake-up job, and delete those that nobody watches.  May switch."""
        tube = self._tube
        commands = [line(b"use", tube), line(b"watch", tube), line(b"ignore", DEFAULT)]
        commands.append(put(0, 0, WAKEUP_TIME_TO_RUN, b""))
        commands.append(line(b"reserve-with-timeout", 0))
        *_, made, reserved = self.pipeline.ask(commands, deadline)
        if made.word == b"INSERTED" and reserved.word == b"RESERVED":
            self._wakeup_job = reserved.number
            self.pipeline.post(line(b"bury", reserved.number, 0), ignore_reply)
        self._clear()

    def _clear(self) -> None:
        """Delete the wake-up jobs of connections that were lost."""
        server = self._server
        (listed,) = server.ask([line(b"list-tubes")])
        listed_lines = listed.body.split(b"\n")
        tubes = [each[2:] for each in listed_lines if each.startswith(b"- " + WAKEUP_TUBES)]
        replies = server.ask([line(b"stats-tube", tube) for tube in tubes])
        for tube, reply in zip(tubes, replies, strict=True):
            facts = server.read_counts(reply)
            if tube != self._tube and facts.get(b"current-watching") == b"0":
                server.kick(tube)
                server.empty(tube)
        server.ask(server.using(DEFAULT))  # a tube that is in use stays

    def close(self) -> None:
        """Close the connection, and delete the wake-up job.  Never switches."""
        self.pipeline.close()
        if self._wakeup_job is not None:
            self._server.pipeline.post(line(b"delete", self._wakeup_job), ignore_reply)
            self._wakeup_job = None

    def watch(self, tubes: Iterable[bytes]) -> None:
        """Watch these tubes and no others from the next ``reserve`` on.  Never switches."""
        wanted = set(tubes)
        commands = [line(b"watch", each) for each in wanted - self._watched]
        commands += [line(b"ignore", each) for each in self._watched - wanted]
        self._watched = wanted
        if commands:
            self.pipeline.post(b"".join(commands), *[ignore_reply] * len(commands))

    def ignore(self, tube: bytes) -> None:
        """Stop watching this one.  Never switches."""
        if tube in self._watched:
            self._watched.discard(tube)
            self.post(line(b"ignore", tube), ignore_reply)

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
                self._renew()
                if not wait or self._pause_for_command():
                    return None
            elif reply.word == b"TIMED_OUT":
                return None
            elif reply.word != b"RESERVED":
                raise self.pipeline.refused(reply, "reserving")
            elif reply.number != self._wakeup_job:
                return reply
            else:
                self._is_woken = False
                self.pipeline.post(line(b"bury", reply.number, 0), ignore_reply)
                if wait:
                    return None

    def _ask(self, wait: int) -> Reply:
        pipeline = self.pipeline
        self._is_waiting = wait > 0
        pipeline.patience = float(wait)
        try:
            (reply,) = pipeline.ask([line(b"reserve-with-timeout", wait)])
        finally:
            self._is_waiting = False
            pipeline.patience = 0.0
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

    def post(self, command: bytes, *places: Place) -> None:
        """Write commands; a wait ends, so that the server reads them.  Never switches."""
        self.pipeline.post(command, *places)
        self.wake()

    def wake(self) -> None:
        """End the wait in the server, if there is one.  Never switches."""
        if self._pausing is not None:
            self._pausing.offer(None)
        if self._is_waiting and not self._is_woken and self._wakeup_job is not None:
            self._is_woken = True
            self._server.pipeline.post(line(b"kick-job", self._wakeup_job), self._kicked)

    def _kicked(self, reply: Reply | BaseException) -> None:
        if isinstance(reply, Reply) and reply.word != b"KICKED":
            # Somebody has deleted it: waits are short from now on.
            self._wakeup_job = None
            self._is_woken = False
