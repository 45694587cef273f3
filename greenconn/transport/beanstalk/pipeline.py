"""One socket to a beanstalkd: commands leave together, replies come in their order.

- A command and its place in the line of replies are written in one step, so the n-th reply belongs
  to the n-th place.  A place is a function that takes the reply, or the exception that came instead;
  it runs in the reader and never switches.
- Commands are grouped with what they depend on (the tube in use) in one write, so that greenlets
  may share the socket.
- Nobody times a single reply: a tick looks whether the server was silent for too long while one is
  due.  A command that waits in the server says for how long (``patience``).
"""

from __future__ import annotations

from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from greenconn.green import fork
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Slot
from greenconn.green.stream import Tls
from greenconn.green.ticker import Ticker
from greenconn.transport.beanstalk.errors import LinkLost, NotBeanstalk, refusal
from greenconn.transport.virtual.pipeline import PipelineLife
from greenconn.wire.beanstalk import BeanstalkParser, ProtocolError, Reply

__all__ = ["Pipeline", "Place", "ignore_reply"]

#: Takes a reply, or the exception that came instead.
Place = Callable[[Reply | BaseException], object]

#: Looks of the tick within the time that it watches.
LOOKS: Final = 4


class Pipeline(PipelineLife):
    """One socket.

    Arguments:
        sock: connected and non-blocking; owned from now on.
        where: the server's URL, for messages.
        on_lost: called once, without switching, with the error when the socket is lost.
        tls: a TLS session that has not begun, or None.

    Attributes:
        lost: why nothing more can be sent; None while it can.
        parser: what reads the replies.
        patience: seconds that the server may be silent beyond the usual, since a command waits.
    """

    lost_error = LinkLost

    def __init__(
        self,
        sock: RawSocket,
        where: str,
        on_lost: Callable[[LinkLost], None],
        tls: Tls | None = None,
    ) -> None:
        super().__init__(sock, where, on_lost, tls)
        self.parser = BeanstalkParser()
        self.patience = 0.0
        self._reply_timeout = 0.0
        fork.register(self)

    def watch(self, reply_timeout: float | None) -> None:
        """End it, from now on, when the server is silent for so many seconds; None: never."""
        if reply_timeout and self.lost is None:
            self._reply_timeout = reply_timeout
            self._ticker = Ticker(reply_timeout / LOOKS, self._tick, "beanstalk-silence")
            self._ticker.start()

    # Commands

    def post(self, command: bytes, *places: Place) -> None:
        """Write commands, one for each of *places*.  Never switches."""
        if self.lost is not None:
            for place in places:
                place(self.lost)
            return
        if not self._places:
            self._waits_since = monotonic()
        try:
            self._places.extend(places)
            self.writer.write(command)
        except BaseException as exc:
            self.interrupted(exc)
            raise

    def ask(self, commands: Sequence[bytes], deadline: Deadline = NEVER) -> list[Reply]:
        """Write *commands* at once and return their replies, refusals among them.  May switch.

        The writer's gate is not asked: it would switch, and what depends on the order of commands
        is written by others meanwhile.  See :meth:`pass_gate`.

        Raises:
            LinkLost: the connection went before the last reply came.
            TimeoutError: it did not come before the deadline.
        """
        if not commands:
            return []
        replies: list[Reply | BaseException] = []
        slot: Slot[Reply | BaseException] = Slot()
        keep: Place = replies.append
        self.post(b"".join(commands), *([keep] * (len(commands) - 1)), slot.offer)
        replies.append(slot.wait(deadline))
        answers: list[Reply] = []
        for reply in replies:
            if isinstance(reply, BaseException):
                raise self._own(reply)
            answers.append(reply)
        return answers

    def pass_gate(self) -> None:
        """Let others run, or wait for a slow server, where that is due.  May switch.

        Raises:
            LinkLost: it is lost, or the server read nothing for too long.
        """
        if self.writer.gate:
            try:
                self.writer.pass_gate(Deadline(self._reply_timeout or None))
            except TimeoutError:
                self.end(LinkLost(f"{self.where} read nothing for {self._reply_timeout:g} s"))
        self.check()

    def refused(self, reply: Reply, what: str) -> Exception:
        """The exception for a reply that was not expected; what ends the link ends it."""
        error = refusal(reply, self.where, what)
        if isinstance(error, NotBeanstalk):
            lost = LinkLost(str(error))
            lost.__cause__ = error
            error = lost
        if isinstance(error, LinkLost):
            self.end(error)
        return error

    # In the reader or in the hub: nothing here may switch or run user code.

    def _on_data(self, data: bytes) -> None:
        places = self._places
        try:
            for reply in self.parser.feed(data):
                if not places:
                    raise NotBeanstalk(f"{self.where}: unexpected reply: {reply!r:.60}")
                places.popleft()(reply)
                if self.lost is not None:
                    return
        except ProtocolError as exc:
            raise NotBeanstalk(f"{self.where} does not speak beanstalk's protocol: {exc}") from exc

    def _tick(self, lag: float) -> None:
        if not self._places or lag:
            return
        now = monotonic()
        silent = min(now - self.stream.received_at, now - self._waits_since)
        if silent > self._reply_timeout + self.patience:
            self.end(LinkLost(f"{self.where} did not answer within {self._reply_timeout:g} s"))


def ignore_reply(reply: object) -> None:
    """Take a reply that changes nothing.  Never switches."""
