"""The greenlet that stands for a consumer."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from gevent import Greenlet, GreenletExit, getcurrent

from greenconn.exceptions import AMQPError, KombuError
from greenconn.green.deadline import Deadline
from greenconn.green.hub import Home
from greenconn.worker.conductor import Conductor
from greenconn.worker.plan import Plan
from greenconn.worker.state import ConsumerState, Wish

if TYPE_CHECKING:
    from greenconn.connection import Connection

    _Greenlet = Greenlet[..., dict[str, Any]]
else:
    _Greenlet = Greenlet

__all__ = ["GRACE", "ConsumerGreenlet"]

#: Seconds that ``stop`` waits, after its own time, for handlers that it has interrupted.
GRACE: Final = 2.0


#: What another thread is to do.
REMEDY: Final = (
    "let that thread do it, as by gevent.get_hub().loop.run_callback_threadsafe() of its hub"
)


class ConsumerGreenlet(_Greenlet):
    """A running consumer, made by :func:`~greenconn.worker.spawn_consumer`.

    It is a ``gevent.Greenlet``: ``join``, ``get``, ``link``, ``kill``, ``dead`` and ``ready()`` mean
    what they always mean.  ``get()`` returns the final :meth:`stats` after :meth:`stop`, and raises
    what the broker refused it for.  ``kill()`` loses nothing that needs an ack: handlers are
    interrupted and their messages go back to the queue; with ``no_ack`` what waits is dropped.

    When its connection is closed it stops: running handlers finish, the rest comes again.

    All methods belong to the thread that spawned it; in another one they raise
    :class:`~greenconn.exceptions.WrongHub`.  Only :attr:`state` and :meth:`stats` may be read there.
    """

    __slots__ = ("_home", "answers_calls", "conductor")

    def __init__(self, plan: Plan, connection: Connection) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # it runs _run
        self.name = f"greenconn:consumer:{plan.name}"
        self._home = Home()
        #: Whether somebody waits for each of its messages: it is a server of ``rpc``.
        self.answers_calls = False
        #: For the library.
        self.conductor = Conductor(plan, connection)
        self.rawlink(_bury)

    def _run(self) -> dict[str, Any]:
        conductor = self.conductor
        conductor.run()
        if conductor.error is not None:
            raise _as_told(conductor.error)
        return self.stats()

    @property
    def state(self) -> ConsumerState:
        """Where the consumer is in its life."""
        return self.conductor.state

    @property
    def runs_here(self) -> bool:
        """Whether the caller is one of its handlers."""
        return self.conductor.line.runs_in(getcurrent())

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the broker has confirmed the consumer.  May switch.

        A broker that is away is waited for.

        Arguments:
            timeout: seconds; None waits.

        Returns:
            False: the time is up, or the consumer has ended.

        Raises:
            ChannelError, ConnectionError: the broker refuses it for good.
        """
        self._home.check(self, REMEDY)
        conductor, deadline = self.conductor, Deadline(timeout)
        while not conductor.is_confirmed:
            if conductor.error is not None:
                raise _as_told(conductor.error)
            if self.ready():
                return False
            try:
                conductor.watch.wait(deadline)
            except TimeoutError:
                if not deadline.has_ended:
                    raise  # somebody else's
                return False
        return True

    def stop(self, timeout: float | None = None) -> bool:
        """End the consumer in good order.  May switch.

        The broker is told to send no more; what no handler has begun is given back at once; running
        handlers finish.  With ``no_ack`` nothing can be given back: what was received is handled.
        Called by one of its own handlers it returns at once, since that has to finish first.

        Arguments:
            timeout: seconds; None waits.

        Returns:
            False: the time was up; the handlers that were left were interrupted, and their messages
            given back.
        """
        self._home.check(self, REMEDY)
        deadline = Deadline(timeout)
        self.conductor.ask(Wish.STOP)
        if self.runs_here:
            return True
        self.join(deadline.left())
        if self.ready():
            return True
        self.conductor.ask(Wish.END)
        self.join(GRACE)
        return False

    def pause(self, timeout: float | None = None) -> bool:
        """Take no more messages, and give back those that no handler has begun.  May switch.

        Running handlers go on.  With ``no_ack`` what was received is kept for :meth:`resume`.

        Arguments:
            timeout: seconds to wait until that is done; None waits.

        Returns:
            Whether it is paused.
        """
        self._home.check(self, REMEDY)
        conductor, deadline = self.conductor, Deadline(timeout)
        conductor.ask(Wish.PAUSE)
        while conductor.is_pausing and not conductor.is_withdrawn and not self.ready():
            try:
                conductor.watch.wait(deadline)
            except TimeoutError:
                if not deadline.has_ended:
                    raise  # somebody else's
                return False
        return conductor.is_pausing and conductor.is_withdrawn and not self.ready()

    def interrupt(self, message_id: str) -> bool:
        """Interrupt the handler of one message.  Never switches.

        :class:`~greenconn.worker.Interrupted`, which is no ``Exception``, is raised where the handler
        waits.  That is a failure without a retry: ``on_error`` decides what becomes of the message
        (of the whole batch, with ``batch_size``).

        Arguments:
            message_id: what it was published with.

        Returns:
            False: no handler of it runs here.
        """
        self._home.check(self, REMEDY)
        return self.conductor.line.interrupt_one(message_id)

    def resume(self) -> None:
        """Take messages again after :meth:`pause`.  Never switches; see :meth:`wait_ready`."""
        self._home.check(self, REMEDY)
        self.conductor.resume()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, as ``gevent.Greenlet.join`` does.  May switch."""
        self._home.check(self, REMEDY)
        super().join(timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> dict[str, Any]:
        """Return the final :meth:`stats`, as ``gevent.Greenlet.get`` does.  May switch.

        Raises:
            BaseException: what the broker refused it for.
        """
        self._home.check(self, REMEDY)
        result: dict[str, Any] = super().get(block, timeout)
        return result

    def kill(
        self,
        exception: Any = GreenletExit,
        block: bool = True,
        timeout: float | None = None,
    ) -> None:
        """End it at once, as ``gevent.Greenlet.kill`` does.  May switch."""
        self._home.check(self, REMEDY)
        super().kill(exception, block, timeout)

    def stats(self) -> dict[str, Any]:
        """Numbers of now and since the beginning.

        Returns:
            ``state``; messages: ``received``, ``handled``, ``failed`` (handlers that raised, and bodies
            that could not be decoded), ``retried``, ``rejected``, ``requeued``, ``dropped`` (with
            ``no_ack``: received and never handled), ``in_flight`` (begun and not answered);
            ``concurrency``; ``prefetch_count``; ``last_delivery_age`` (seconds; None before the first).
        """
        conductor = self.conductor
        handling, line = conductor.handling, conductor.line
        return {
            "state": conductor.state.value,
            "received": line.received,
            "handled": handling.handled,
            "failed": handling.failed,
            "retried": handling.retried,
            "rejected": handling.rejected,
            "requeued": handling.requeued,
            "dropped": handling.dropped,
            "in_flight": line.in_flight,
            "concurrency": conductor.plan.concurrency,
            "prefetch_count": conductor.plan.prefetch,
            "last_delivery_age": None if line.last_at is None else monotonic() - line.last_at,
        }


def _as_told(error: BaseException) -> BaseException:
    """Without our own frames where the text says all: gevent prints it, and so does who calls get()."""
    is_foreseen = isinstance(error, (OSError, AMQPError, KombuError, ImportError))
    return error.with_traceback(None) if is_foreseen else error


def _bury(consumer: ConsumerGreenlet) -> None:
    # In the hub.
    consumer.conductor.bury()
