"""The consumers of one connection, and what they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from gevent import Greenlet, getcurrent

from greenconn.abc import DeadlineLike
from greenconn.green import fork
from greenconn.green.deadline import Deadline
from greenconn.green.state import moved
from greenconn.green.supervisor import spawn
from greenconn.session.connect import is_lockout
from greenconn.worker.channels import SharedChannels
from greenconn.worker.dispatch import WorkerPool

if TYPE_CHECKING:
    from greenconn.session.session import Session
    from greenconn.worker.lifecycle import ConsumerLifecycle

__all__ = [
    "BackgroundTask",
    "BackgroundTasks",
    "ConsumerGroup",
    "TaskState",
    "group_of",
]

#: Background tasks of one connection under way at once.  They wait for one broker, so more are not
#: quicker; and a thousand consumers that begin together need not have a thousand greenlets more.
LIMIT: Final = 32


class TaskState(Enum):
    """A task's life."""

    WAITING = "waiting"
    RUNNING = "running"
    #: Its greenlet is being killed.
    CANCELLED = "cancelled"
    ENDED = "ended"


TASK_MOVES: Final[Mapping[TaskState, frozenset[TaskState]]] = {
    TaskState.WAITING: frozenset({TaskState.RUNNING, TaskState.ENDED}),
    TaskState.RUNNING: frozenset({TaskState.CANCELLED, TaskState.ENDED}),
    TaskState.CANCELLED: frozenset({TaskState.ENDED}),
    TaskState.ENDED: frozenset(),
}


class BackgroundTask:
    """A short task that waits for the broker.  Nothing here switches.

    Arguments:
        function: called in a greenlet; may switch, and may be interrupted.
        on_end: called when the task has ended, however.  Must not switch.

    Attributes:
        greenlet: set while the task runs.
        state: the task's.
    """

    __slots__ = ("_on_end", "function", "greenlet", "state")

    def __init__(self, function: Callable[[], object], on_end: Callable[[], None]) -> None:
        self.function = function
        self._on_end = on_end
        self.greenlet: Greenlet[..., Any] | None = None
        self.state = TaskState.WAITING

    def __repr__(self) -> str:
        return f"<BackgroundTask {self.function!r}: {self.state.value}>"

    @property
    def has_ended(self) -> bool:
        """Whether it was done, or has ended in another way."""
        return self.state is TaskState.ENDED

    def start(self, greenlet: Greenlet[..., Any]) -> None:
        """Note that *greenlet* runs it."""
        self._move(TaskState.RUNNING)
        self.greenlet = greenlet

    def cancel(self) -> None:
        """End it soon; ``on_end`` is called all the same.  Again: does nothing."""
        if self.state is TaskState.WAITING:
            self.end()
        elif self.state is TaskState.RUNNING:
            assert self.greenlet is not None
            self._move(TaskState.CANCELLED)
            self.greenlet.kill(block=False)

    def end(self) -> None:
        """Note that it has ended.  Again: does nothing."""
        if self.state is not TaskState.ENDED:
            self._move(TaskState.ENDED)
            self.greenlet = None
            self._on_end()

    def _move(self, state: TaskState) -> None:
        self.state = moved(self.state, state, TASK_MOVES, "a task")


class BackgroundTasks:
    """A queue of tasks, run in their order, at most :data:`LIMIT` at once."""

    __slots__ = ("_running", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[BackgroundTask] = deque()
        #: Greenlets, with the task of each; None when it is about to take the next one.
        self._running: dict[Greenlet[..., Any], BackgroundTask | None] = {}

    def submit(self, function: Callable[[], object], on_end: Callable[[], None]) -> BackgroundTask:
        """Queue a task and return it; see :class:`BackgroundTask`.  Never switches."""
        task = BackgroundTask(function, on_end)
        self._waiting.append(task)
        self._fill()
        return task

    def _fill(self) -> None:
        if self._waiting and len(self._running) < LIMIT:
            greenlet = spawn("consumer-task", self._run)
            self._running[greenlet] = None
            greenlet.rawlink(self._on_greenlet_end)

    def _run(self) -> None:
        greenlet = getcurrent()
        assert isinstance(greenlet, Greenlet)
        while self._waiting:
            task = self._waiting.popleft()
            if task.has_ended:
                continue
            self._running[greenlet] = task
            task.start(greenlet)
            task.function()
            self._running[greenlet] = None
            is_cancelled = task.state is TaskState.CANCELLED
            task.end()
            if is_cancelled:
                return  # the kill is on its way, and not meant for the next one

    def _on_greenlet_end(self, greenlet: Greenlet[..., Any]) -> None:
        # In the hub: it found nothing more to do, or its task was cancelled.
        task = self._running.pop(greenlet, None)
        if task is not None:
            task.end()
        self._fill()


class ConsumerGroup:
    """The consumers of one session: a member of it, which is restored after each reconnect.

    Arguments:
        session: of their connection.

    Attributes:
        channels: the channels that they share.
        restoring, withdrawing: requests to the broker; apart, so that a broker that is away for those
            who begin does not hold up those who end.
        pool: the greenlets that run their handlers.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.channels = SharedChannels()
        self.restoring = BackgroundTasks()
        self.withdrawing = BackgroundTasks()
        self.pool = WorkerPool()
        #: In the order in which they were added.
        self._consumers: dict[ConsumerLifecycle, None] = {}
        fork.register(self)

    def __repr__(self) -> str:
        return f"<{len(self._consumers)} consumers of {self.session.broker.label}>"

    def __len__(self) -> int:
        return len(self._consumers)

    def add(self, consumer: ConsumerLifecycle) -> None:
        """Add *consumer*.  Never switches."""
        if not self._consumers:
            self.session.on_closed.append(self._on_closed)
        self.join_recovery()
        self._consumers[consumer] = None
        self.pool.resize(max(self.pool.limit, consumer.options.concurrency))

    def join_recovery(self) -> None:
        """Have the consumers restored after reconnects, also when the session was closed meanwhile.

        Never switches.
        """
        self.session.add(self)

    def remove(self, consumer: ConsumerLifecycle) -> None:
        """Remove *consumer*, which has ended.  Never switches.  Again: does nothing."""
        if consumer not in self._consumers:
            return
        del self._consumers[consumer]
        if not self._consumers:
            self.session.discard(self)
            self.session.on_closed.remove(self._on_closed)
            self.pool.resize(0)

    def recover(self, deadline: DeadlineLike) -> None:
        """Wait until all are restored that can be restored now.  May switch.

        Each consumer restores itself, and retries by itself.
        """
        until = Deadline(deadline.left())
        for consumer in list(self._consumers):
            try:
                consumer.wait_restored(until)
            except TimeoutError:
                return

    def failed(self, exc: BaseException) -> None:
        """End the consumers since recovery was given up; after a lockout each goes on retrying."""
        if not is_lockout(exc):
            for consumer in list(self._consumers):
                consumer.fail(exc)

    def _on_closed(self) -> None:
        self.channels.clear()
        for consumer in list(self._consumers):
            consumer.shut_down()

    def forget(self) -> None:
        """Drop all after a fork, in the child: consumers and their messages are the parent's."""
        self.pool.monitor.stop()
        consumers, self._consumers = self._consumers, {}
        for consumer in consumers:
            consumer.forget()


def group_of(session: Session) -> ConsumerGroup:
    """Return the consumers of a session; one group for as long as it lives.  Never switches."""
    group = session.services.consumers
    if not isinstance(group, ConsumerGroup):
        group = session.services.consumers = ConsumerGroup(session)
    return group
