"""The connection that waits in the server for jobs of many tubes, and the bell that ends its wait.

beanstalkd reads nothing from a connection that waits in ``reserve``, and lets nobody else settle what
that connection has reserved.  So it always watches one tube more, its own, in which a single job lies
buried: the bell.  Kicked over the other connection it becomes ready, is the most urgent of all, and
ends the wait; then it is buried again.  Kicking works even when the server takes no new jobs.

Commands are written at once all the same, behind the ``reserve`` that waits, and then the bell is
rung.  A bell whose owner was killed stays behind; whoever opens such a connection later clears away
bells that nobody watches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Slot
from greenconn.transport.beanstalk.desk import DEFAULT, Desk, whole_seconds
from greenconn.transport.beanstalk.pipeline import Pipeline, Place
from greenconn.wire.beanstalk import Reply, line, put

__all__ = ["Waiting"]

#: What the tubes of bells begin with; no queue's tube does.
BELLS: Final = b"$bell."
#: Seconds of a wait that no bell can end.
WITHOUT_BELL: Final = 1
#: Seconds that the bell may be reserved before it is buried; it is at once.
BELL_TIME: Final = 60
#: Seconds between two attempts when a job of ours is about to come back.
SOON: Final = 0.25


class Waiting:
    """One connection, on which one greenlet at a time waits.

    Arguments:
        desk: the connection over which the bell is rung.
        owner: names the bell; nobody else has the same.
        renew: begins all reservations of this connection anew.  Never switches.
    """

    def __init__(
        self, pipeline: Pipeline, desk: Desk, owner: str, renew: Callable[[], None]
    ) -> None:
        self.pipeline = pipeline
        self._desk = desk
        self._tube = BELLS + owner.encode()
        self._renew = renew
        self._watched: set[bytes] = set()
        #: The number of the bell; None: it could not be made.
        self._bell: int | None = None
        #: It was kicked, and has not come yet.
        self._is_rung = False
        #: A ``reserve`` waits in the server.
        self._is_waiting = False
        self._pause: Slot[None] | None = None

    def open(self, deadline: Deadline = NEVER) -> None:
        """Make the bell, and clear away those that nobody can hear.  May switch."""
        tube = self._tube
        commands = [line(b"use", tube), line(b"watch", tube), line(b"ignore", DEFAULT)]
        commands.append(put(0, 0, BELL_TIME, b""))
        commands.append(line(b"reserve-with-timeout", 0))
        *_, made, reserved = self.pipeline.ask(commands, deadline)
        if made.word == b"INSERTED" and reserved.word == b"RESERVED":
            self._bell = reserved.number
            self.pipeline.post(line(b"bury", reserved.number, 0), _nothing)
        self._clear()

    def _clear(self) -> None:
        """Delete the bells of connections that were lost."""
        desk = self._desk
        (listed,) = desk.ask([line(b"list-tubes")])
        bells = [each[2:] for each in listed.body.split(b"\n") if each.startswith(b"- " + BELLS)]
        replies = desk.ask([line(b"stats-tube", tube) for tube in bells])
        for tube, reply in zip(bells, replies, strict=True):
            facts = desk.read_counts(reply)
            if tube != self._tube and facts.get(b"current-watching") == b"0":
                desk.kick(tube)
                desk.empty(tube)
        desk.ask(desk.using(DEFAULT))  # a tube that is in use stays

    def close(self) -> None:
        """Close the connection, and take the bell away.  Never switches."""
        self.pipeline.close()
        if self._bell is not None:
            self._desk.pipeline.post(line(b"delete", self._bell), _nothing)
            self._bell = None

    def watch(self, tubes: Iterable[bytes]) -> None:
        """Wait for jobs of these, from the next ``reserve`` on.  Never switches."""
        wanted = set(tubes)
        commands = [line(b"watch", each) for each in wanted - self._watched]
        commands += [line(b"ignore", each) for each in self._watched - wanted]
        self._watched = wanted
        if commands:
            self.pipeline.post(b"".join(commands), *[_nothing] * len(commands))

    def ignore(self, tube: bytes) -> None:
        """Wait for jobs of this one no more.  Never switches."""
        if tube in self._watched:
            self._watched.discard(tube)
            self.post(line(b"ignore", tube), _nothing)

    def reserve(self, seconds: float) -> Reply | None:
        """Reserve one job of the tubes that are watched.  May switch.

        Arguments:
            seconds: to wait for it; 0 does not wait.

        Returns:
            None: there was none, or the wait was interrupted.
        """
        wait = whole_seconds(seconds)
        if self._bell is None:
            wait = min(wait, WITHOUT_BELL)
        while True:
            reply = self._ask(wait)
            if reply.word == b"DEADLINE_SOON":
                self._renew()
                if not wait or self._rest():
                    return None
            elif reply.word == b"TIMED_OUT":
                return None
            elif reply.word != b"RESERVED":
                raise self.pipeline.refused(reply, "reserving")
            elif reply.number != self._bell:
                return reply
            else:
                self._is_rung = False
                self.pipeline.post(line(b"bury", reply.number, 0), _nothing)
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

    def _rest(self) -> bool:
        """Wait a little, and tell whether somebody wants something meanwhile.  May switch."""
        slot: Slot[None] = Slot()
        self._pause = slot
        try:
            slot.wait(Deadline(SOON))
        except TimeoutError:
            return False
        finally:
            self._pause = None
        return True

    def post(self, command: bytes, *places: Place) -> None:
        """Write commands; a wait ends, so that the server reads them.  Never switches."""
        self.pipeline.post(command, *places)
        self.ring()

    def ring(self) -> None:
        """End the wait, if there is one.  Never switches."""
        if self._pause is not None:
            self._pause.offer(None)
        if self._is_waiting and not self._is_rung and self._bell is not None:
            self._is_rung = True
            self._desk.pipeline.post(line(b"kick-job", self._bell), self._kicked)

    def _kicked(self, reply: Reply | BaseException) -> None:
        if isinstance(reply, Reply) and reply.word != b"KICKED":
            # Somebody has deleted it: waits are short from now on.
            self._bell = None
            self._is_rung = False


def _nothing(reply: object) -> None:
    """A reply that tells nothing."""
