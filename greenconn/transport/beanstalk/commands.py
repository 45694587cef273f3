"""The connection for commands that beanstalkd answers at once.

It stores, peeks, counts, reserves what is ready, and settles what it reserved.  All greenlets of a
link share it: the tube in use and the tube that is watched are set together with the commands that
depend on them, in one write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final, NamedTuple

from greenconn.green.deadline import Deadline
from greenconn.transport.beanstalk.pipeline import Pipeline
from greenconn.wire.beanstalk import LONGEST_BODY, Reply, line, statistics

__all__ = ["ALL", "DEFAULT", "CommandConnection", "Job", "Taken", "number_of", "whole_seconds"]

#: Tube that a new connection uses and watches.
DEFAULT: Final = b"default"
#: Jobs that are taken at once to be deleted.
PAGE: Final = 100
#: More than a tube can have.
ALL: Final = 2**31
_TAKE: Final = line(b"reserve-with-timeout", 0)


@dataclass(eq=False, slots=True)
class Job:
    """A job that one of our connections has reserved: only that one may settle it.

    Attributes:
        post: writes commands to that connection.
        is_dead: it is too old to be of use.
        priority: beanstalk's; 0 is the most urgent.
        time_to_run: seconds that its reservation lasts.
    """

    number: int
    post: Callable[..., None]
    priority: int
    time_to_run: int
    is_dead: bool = False


class Taken(NamedTuple):
    """A job that was just reserved, with its statistics."""

    job: Job
    body: bytes
    tube: bytes
    reserves: int


def whole_seconds(seconds: float) -> int:
    """Round up to whole seconds, as beanstalk has no others."""
    return min(ceil(seconds), 2**32 - 1) if seconds > 0 else 0


class CommandConnection:
    """One connection whose commands are answered at once.

    Attributes:
        longest_job: bytes that the server takes.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.where = pipeline.where
        self.longest_job = LONGEST_BODY
        self._used = DEFAULT

    def greet(self, deadline: Deadline) -> None:
        """Ask the server for its limits.  May switch.

        Raises:
            LinkLost, TimeoutError: it does not answer, or not as a beanstalkd.
        """
        (reply,) = self.pipeline.ask([line(b"stats")], deadline)
        if reply.word != b"OK":
            raise self.refused(reply, "reading its limits")
        limit = statistics(reply.body).get(b"max-job-size", b"")
        if limit.isdigit():
            self.longest_job = int(limit)
            self.pipeline.parser.longest_body = max(LONGEST_BODY, self.longest_job)

    def refused(self, reply: Reply, what: str) -> Exception:
        """Return the exception for a reply that was not expected."""
        return self.pipeline.refused(reply, what)

    def ask(self, commands: Sequence[bytes]) -> list[Reply]:
        """Send commands that depend on no tube, and return their replies.  May switch."""
        return self.pipeline.ask(commands)

    def ask_using(self, tube: bytes, commands: Sequence[bytes]) -> list[Reply]:
        """Send commands that work on the tube in use, and return their replies.  May switch."""
        before = self.using(tube)
        return self.pipeline.ask([*before, *commands])[len(before) :]

    def using(self, tube: bytes) -> list[bytes]:
        """Return the commands that use *tube*; they must be written before any switch."""
        if tube == self._used:
            return []
        self._used = tube
        return [line(b"use", tube)]

    # -- reserving

    def take(self, wanted: Iterable[tuple[bytes, int]]) -> list[list[Reply]]:
        """Reserve what is ready; each tube, and how many from it at most.  May switch.

        Returns:
            for each tube the replies of those that were reserved.
        """
        commands: list[bytes] = []
        ends: list[int] = []
        before = DEFAULT
        for tube, count in wanted:
            commands += [line(b"watch", tube), line(b"ignore", before), *[_TAKE] * count]
            before = tube
            ends.append(len(commands))
        if not commands:
            return []
        # A tube counts as used as long as somebody watches it, so none stays watched.
        commands += [line(b"watch", DEFAULT), line(b"ignore", before)]
        replies = self.pipeline.ask(commands)
        found: list[list[Reply]] = []
        start = 0
        for end in ends:
            found.append([each for each in replies[start:end] if each.word == b"RESERVED"])
            start = end
        for reply in replies:
            if reply.word != b"RESERVED" and reply.word not in _NOTHING:
                raise self.refused(reply, "reserving")
        return found

    def describe(self, reserved: Sequence[tuple[Reply, Callable[..., None]]]) -> list[Taken]:
        """Return reserved jobs with their statistics.  May switch.

        Arguments:
            reserved: each reply, with the function that writes to the connection that reserved it.

        Returns:
            those that are still reserved.
        """
        replies = self.ask([line(b"stats-job", reply.number) for reply, _ in reserved])
        found = []
        for (reply, post), told in zip(reserved, replies, strict=True):
            if told.word != b"OK":
                if told.word == b"NOT_FOUND":
                    continue
                raise self.refused(told, "reading the statistics of a job")
            facts = statistics(told.body)
            if facts.get(b"state") == b"reserved":
                job = Job(reply.number, post, number_of(facts, b"pri"), number_of(facts, b"ttr"))
                tube = facts.get(b"tube", DEFAULT)
                found.append(Taken(job, reply.body, tube, number_of(facts, b"reserves")))
        return found

    # -- whole tubes

    def counts(self, tube: bytes) -> dict[bytes, bytes]:
        """Return the statistics of a tube; empty: there is no such tube.  May switch."""
        (reply,) = self.ask([line(b"stats-tube", tube)])
        return self.read_counts(reply)

    def read_counts(self, reply: Reply) -> dict[bytes, bytes]:
        """Read the answer to ``stats-tube``."""
        if reply.word not in (b"OK", b"NOT_FOUND"):
            raise self.refused(reply, "counting jobs")
        return statistics(reply.body)

    def empty(self, tube: bytes) -> int:
        """Delete the jobs that are ready and return how many there were.  May switch."""
        count = 0
        while True:
            (found,) = self.take([(tube, PAGE)])
            replies = self.ask([line(b"delete", each.number) for each in found])
            count += sum(each.word == b"DELETED" for each in replies)
            if len(found) < PAGE:
                return count

    def kick(self, tube: bytes, limit: int = ALL) -> int:
        """Make buried jobs ready, or delayed ones where none is buried.  May switch."""
        (reply,) = self.ask_using(tube, [line(b"kick", limit)])
        if reply.word != b"KICKED":
            raise self.refused(reply, "kicking jobs")
        return reply.number


#: What ``reserve-with-timeout 0`` says when it finds nothing.
_NOTHING: Final = frozenset({b"TIMED_OUT", b"DEADLINE_SOON", b"USING", b"WATCHING", b"NOT_IGNORED"})


def number_of(facts: dict[bytes, bytes], name: bytes) -> int:
    """Return a number of the statistics; 0 where it is none."""
    value = facts.get(name, b"")
    return int(value) if value.isdigit() else 0
