"""All consumers of one connection, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenconn.abc import DeadlineLike
from greenconn.green import fork
from greenconn.green.deadline import Deadline
from greenconn.session.connect import is_lockout
from greenconn.worker.berths import Berths
from greenconn.worker.errands import Errands
from greenconn.worker.pool import WorkerPool

if TYPE_CHECKING:
    from greenconn.session.session import Session
    from greenconn.worker.conductor import Conductor

__all__ = ["Crew", "crew_of"]


class Crew:
    """The consumers of one session: a member of it, which is restored after each reconnect.

    Arguments:
        session: of their connection.

    Attributes:
        berths: the channels that they share.
        restoring, withdrawing: what they ask of the broker, so that one that is away for those who
            begin does not hold up those who end.
        pool: the greenlets that run their handlers.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.berths = Berths()
        self.restoring = Errands()
        self.withdrawing = Errands()
        self.pool = WorkerPool()
        #: In the order in which they came.
        self._consumers: dict[Conductor, None] = {}
        fork.register(self)

    def __repr__(self) -> str:
        return f"<{len(self._consumers)} consumers of {self.session.broker.label}>"

    def __len__(self) -> int:
        return len(self._consumers)

    def enter(self, consumer: Conductor) -> None:
        """Take *consumer* in.  Never switches."""
        if not self._consumers:
            self.session.on_closed.append(self._on_closed)
        self.rejoin()
        self._consumers[consumer] = None
        self.pool.resize(max(self.pool.limit, consumer.plan.concurrency))

    def rejoin(self) -> None:
        """Be restored after reconnects, whatever the connection has forgotten.  Never switches."""
        self.session.add(self)

    def leave(self, consumer: Conductor) -> None:
        """*consumer* has ended.  Never switches.  Again: does nothing."""
        if consumer not in self._consumers:
            return
        del self._consumers[consumer]
        if not self._consumers:
            self.session.discard(self)
            self.session.on_closed.remove(self._on_closed)
            self.pool.resize(0)

    def recover(self, deadline: DeadlineLike) -> None:
        """Wait until all are restored that can be now.  May switch.

        Each restores itself, and tries again by itself what failed.
        """
        until = Deadline(deadline.left())
        for consumer in list(self._consumers):
            try:
                consumer.wait_restored(until)
            except TimeoutError:
                return

    def failed(self, exc: BaseException) -> None:
        """Recovery was given up.  A consumer that was locked out goes on trying by itself."""
        if not is_lockout(exc):
            self._tell(lambda consumer: consumer.fail(exc))

    def _on_closed(self) -> None:
        self.berths.clear()
        self._tell(lambda consumer: consumer.wind_down())

    def forget(self) -> None:
        """After a fork, in the child: consumers and their messages are the parent's."""
        self.pool.monitor.stop()
        consumers, self._consumers = self._consumers, {}
        for consumer in consumers:
            consumer.forget()

    def _tell(self, what: Callable[[Conductor], Any]) -> None:
        for consumer in list(self._consumers):
            what(consumer)


def crew_of(session: Session) -> Crew:
    """The crew of a session; it lives as long as that."""
    crew = session.services.consumers
    if not isinstance(crew, Crew):
        crew = session.services.consumers = Crew(session)
    return crew
