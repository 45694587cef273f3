"""A socket for large bodies, so that they do not hold up the small ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.green.deadline import Deadline
from greenconn.green.single import SingleFlight
from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.login import open_pipeline
from greenconn.transport.redis.pipeline import ENDLESS, Pipeline

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["LargeBodies"]


class LargeBodies:
    """The way of bodies above 1 MiB, opened when the first one comes."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._pipeline: Pipeline | None = None
        self._flight = SingleFlight("redis-large")

    @property
    def current(self) -> Pipeline | None:
        """The socket, if there is one."""
        return self._pipeline

    def pipeline(self) -> Pipeline:
        """The socket, opened now if it is not.  May switch.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.login.open_pipeline`.
        """
        pipeline = self._pipeline
        if pipeline is None or pipeline.lost is not None:
            pipeline = self._flight.run("open", self._open, ENDLESS)
        if pipeline.writer.gate:
            pipeline.pass_gate(ENDLESS)
        return pipeline

    def _open(self) -> Pipeline:
        link, transport = self._link, self._link.transport
        deadline = Deadline(transport.connect_timeout)
        pipeline, _ = open_pipeline(
            transport.address, transport.login, deadline, _ignore, _ignore_loss
        )
        try:
            link.check_open()
            link.watch(pipeline)
        except BaseException:
            pipeline.close()
            raise
        self._pipeline = pipeline
        return pipeline

    def stop(self) -> None:
        """The link is gone.  Never switches."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.close()

    def forget(self) -> None:
        """In the child of a fork: it is the parent's."""
        if self._pipeline is not None:
            self._pipeline.forget()
            self._pipeline = None


def _ignore(push: list[Any]) -> None:
    pass


def _ignore_loss(exc: LinkLost) -> None:
    """Those who wait have been told; the next one opens it again."""
