"""Sockets besides the one for commands: opened on demand, and again after a loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from greenconn.green.deadline import Deadline
from greenconn.green.single_flight import SingleFlight
from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.login import Server, Welcome
from greenconn.transport.redis.pipeline import ENDLESS, Pipeline

__all__ = ["ExtraSocket", "LargeBodies"]


class ExtraSocket:
    """One such socket, which ends with its link.

    Arguments:
        commands: of the link.
        name: of the greenlet that opens it.

    Attributes:
        pipeline: the socket that was opened last; None: there is none.
    """

    def __init__(self, commands: Commands, name: str) -> None:
        self._commands = commands
        self._flight = SingleFlight(name)
        self.pipeline: Pipeline | None = None

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent on it."""
        return self.pipeline is not None and self.pipeline.lost is None

    def open(
        self,
        connect: Callable[[], tuple[Pipeline, Welcome]],
        begin: Callable[[Pipeline, Welcome], None] | None = None,
    ) -> Pipeline:
        """Open it, once for all who ask meanwhile.  May switch.

        Arguments:
            connect: returns an open socket.  May switch.
            begin: prepares the socket before anybody has it.  May switch.

        Raises:
            LinkLost: the link has ended meanwhile.
            Exception: of *connect* or *begin*; then nothing stays open.
        """
        return self._flight.run("open", partial(self._open, connect, begin), ENDLESS)

    def _open(
        self,
        connect: Callable[[], tuple[Pipeline, Welcome]],
        begin: Callable[[Pipeline, Welcome], None] | None,
    ) -> Pipeline:
        pipeline, welcome = connect()
        try:
            self._commands.watch(pipeline)
            if begin is not None:
                begin(pipeline, welcome)
            self._commands.check_open()
        except BaseException:
            pipeline.close()
            raise
        self.stop()
        self.pipeline = pipeline
        return pipeline

    def stop(self) -> None:
        """Close it: the link is gone.  Never switches."""
        pipeline, self.pipeline = self.pipeline, None
        if pipeline is not None:
            pipeline.close()

    def forget(self) -> None:
        """Leave it to the parent process, in the child of a fork."""
        if self.pipeline is not None:
            self.pipeline.forget()
            self.pipeline = None


class LargeBodies:
    """The way of bodies above 1 MiB, so that they do not hold up the small ones.

    Attributes:
        socket: opened when the first one comes.
    """

    def __init__(self, commands: Commands, server: Server) -> None:
        self._server = server
        self.socket = ExtraSocket(commands, "redis-large")

    def pipeline(self) -> Pipeline:
        """Return the socket, opened now if it is not.  May switch.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.login.open_pipeline`.
        """
        pipeline = self.socket.pipeline
        if pipeline is None or pipeline.lost is not None:
            pipeline = self.socket.open(self._connect)
        if pipeline.writer.gate:
            pipeline.pass_gate(ENDLESS)
        return pipeline

    def _connect(self) -> tuple[Pipeline, Welcome]:
        server = self._server
        return server.open(Deadline(server.connect_timeout), _ignore, _ignore_loss)


def _ignore(push: list[Any]) -> None:
    pass


def _ignore_loss(exc: LinkLost) -> None:
    """Ignore the loss: all waiters have the error, and the next call opens it again."""
