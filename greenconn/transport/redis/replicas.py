"""Confirms by replicas: a publish is confirmed when so many of them have the message (``replicas``).

A master answers before its replicas have a write.  ``WAIT`` answers when they have all writes that came
before it over the same socket.  So it is sent, over that socket, when the master has answered; one at a
time, for all messages that were answered until then.  It holds up what is behind it on the socket, so it
waits for a moment only, and is repeated after a pause while too few replicas have the messages: who
waits decides for how long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gevent import get_hub

from greenconn.broker.publisher import Completion
from greenconn.green.deadline import Deadline
from greenconn.transport.redis.commands import CommandPipeline
from greenconn.transport.redis.envelope import Outgoing
from greenconn.transport.redis.publishing import RedisPublisher, Routed
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.transport.redis.link import RedisLink


#: Milliseconds for which one WAIT holds up its socket, at most.
HELD_MS: Final = 20
#: Seconds between two of them while too few replicas have the messages.
PAUSE: Final = 0.1


class SocketConfirms:
    """The confirms of replicas for what was sent over one socket.

    Arguments:
        post: sends a command over the socket, given what takes its reply.
        count: replicas that must have a message.
    """

    def __init__(self, post: Callable[[bytes, Callable[[Any], Any]], None], count: int) -> None:
        self._post = post
        self._count = count
        self._command = pack(b"WAIT", count, HELD_MS)
        #: Messages that the master has: those that a WAIT is on its way for, and later ones.
        self._asked: list[Completion] = []
        self._later: list[Completion] = []
        self._timer: Any = None

    def add(self, done: Completion) -> None:
        """Wait for the replicas; *done* gets the outcome.  Never switches."""
        self._later.append(done)
        if not self._asked and self._timer is None:
            self._ask()

    def _ask(self) -> None:
        self._asked, self._later = self._later, []
        self._post(self._command, self._replied)

    def _replied(self, reply: Any) -> None:
        # In the reader.
        asked, self._asked = self._asked, []
        if isinstance(reply, int) and reply < self._count:
            self._later = [*(each for each in asked if not each.has_left), *self._later]
            if self._later:
                self._timer = get_hub().loop.timer(PAUSE, ref=False)
                self._timer.start(self._on_time)
            return
        for each in asked:
            each.offer(reply)
        if self._later and not self._asked:
            self._ask()

    def _on_time(self) -> None:
        # In the hub.
        timer, self._timer = self._timer, None
        timer.stop()
        timer.close()
        self._ask()


class ReplicaConfirms:
    """The confirms of replicas for one link.

    Arguments:
        count: replicas that must have a message.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._of: dict[CommandPipeline, SocketConfirms] = {}

    def add(self, pipeline: CommandPipeline, done: Completion) -> None:
        """Wait for the replicas of what was sent over a socket; *done* gets the outcome.

        Never switches.
        """
        found = self._of.get(pipeline)
        if found is None:
            for each in [each for each in self._of if each.lost is not None]:
                del self._of[each]  # those that wait get its error with the next WAIT
            found = self._of[pipeline] = SocketConfirms(pipeline.post, self._count)
        found.add(done)


class Stored:
    """The receiver of the master's answer.

    Arguments:
        confirms: wait for the replicas.
        pipeline: the socket over which it comes.
        done: gets the outcome.
    """

    __slots__ = ("_confirms", "_done", "_pipeline")

    def __init__(
        self, confirms: ReplicaConfirms, pipeline: CommandPipeline, done: Completion
    ) -> None:
        self._confirms = confirms
        self._pipeline = pipeline
        self._done = done

    @property
    def has_left(self) -> bool:
        """Whether the message is not to be stored any more."""
        return self._done.has_left

    def offer(self, value: Any) -> bool:
        """Take the master's answer.  In the reader."""
        if isinstance(value, Exception):
            return self._done.offer(value)
        self._confirms.add(self._pipeline, self._done)
        return True


class ReplicatedPublisher(RedisPublisher):
    """The publisher of one channel whose messages replicas must have.

    Arguments:
        channel: is closed by what the broker refuses.
        link: has the parts that all its channels share.
        confirms: of the link.
    """

    def __init__(
        self, channel: StoreChannel[Any], link: RedisLink, confirms: ReplicaConfirms
    ) -> None:
        super().__init__(channel, link)
        self._confirms = confirms

    def replacement(self, message: Outgoing | dict[str, Any], queue: str) -> None:
        """Return None: replicas must have a message before the one in its place goes."""

    def _put(
        self,
        target: bytes | Routed,
        queue: str,
        done: Completion,
        deadline: Deadline | None,
    ) -> None:
        pipeline = self._pipeline if isinstance(target, bytes) else target.pipeline
        super()._put(target, queue, Stored(self._confirms, pipeline, done), deadline)
