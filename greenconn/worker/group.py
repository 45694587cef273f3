"""The consumers of one connection, which share channels, background tasks and handlers' greenlets.

They are recovered and closed together with the connection.

At most fifty consumers share a channel, so an error of the broker, which costs a channel, hits few.
Consumer channels carry qos, consume, cancel and acks only.  A channel has one prefetch, which is sent
when it is opened, so that consumers of the same prefetch start with one request each and none waits for
the reply to another.

RabbitMQ starts the consumers of a channel one after the other, and waits for the majority of a quorum
queue with each.  So the consumers that begin together, as after a reconnect, are spread over as many
channels as they need in the end.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from gevent import Greenlet, getcurrent
from gevent.lock import BoundedSemaphore

from greenconn.green.hub import forget_at_fork
from greenconn.green.supervisor import State, moved, spawn
from greenconn.session.connect import is_lockout
from greenconn.session.session import begin_channel
from greenconn.worker.dispatch import WorkerPool
from greenconn.worker.failures import DeadLetterExchanges

if TYPE_CHECKING:
    from greenconn.green.deadline import Deadline
    from greenconn.session.session import Session
    from greenconn.transport.base import Link
    from greenconn.worker.lifecycle import ConsumerLifecycle

#: Consumers of one channel.
CONSUMERS_PER_CHANNEL: Final = 50
#: Background tasks of one connection under way at once.  They wait for one broker, so more are not
#: quicker; and a thousand consumers that begin together need not have a thousand greenlets more.
TASKS_AT_ONCE: Final = 32


class SharedChannel:
    """A channel for up to :data:`CONSUMERS_PER_CHANNEL` consumers, opened by the first of them.

    Attributes:
        prefetch: messages of each consumer that may be unacked; 0 is no limit.
        lock: held over the opening.
        consumers: number of those that are here or about to be.
        is_private: one consumer has it for itself, since its request may fail.
        life: the one of its :class:`SharedChannels` that counts it.
    """

    __slots__ = (
        "_channel",
        "_has_prefetch",
        "_link",
        "consumers",
        "is_private",
        "life",
        "lock",
        "prefetch",
    )

    def __init__(self, link: Link, prefetch: int, life: object) -> None:
        self._link = link
        self._channel: Any = None
        self._has_prefetch = False
        self.prefetch = prefetch
        self.life = life
        self.lock = BoundedSemaphore(1)
        self.consumers = 0
        self.is_private = False

    @property
    def is_usable(self) -> bool:
        """Whether consumers may be started here: not known to be closed."""
        return self._channel is None or bool(self._channel.is_open)

    def reuse(self, prefetch: int) -> None:
        """Prepare it for other consumers, when it has none."""
        if prefetch != self.prefetch:
            self.prefetch, self._has_prefetch = prefetch, False

    def open(self, transport: Any) -> Any:
        """Return the channel, opened now if it was not yet.  The caller holds the lock.  May switch."""
        if self._channel is None:
            self._channel = begin_channel(transport, self._link)
            # What a handler acks itself must not wait for the end of its work.
            self._channel.flushes_acks = True
        if not self._has_prefetch:
            if hasattr(self._channel, "begin_qos"):
                self._channel.begin_qos(self.prefetch)
            else:
                self._channel.basic_qos(0, self.prefetch, False)
            self._has_prefetch = True
        return self._channel


class SharedChannels:
    """The consumer channels of one connection.  Nothing here switches.

    Attributes:
        lone_start: held by a consumer whose start may have made the broker close the connection, while
            it starts again.
    """

    def __init__(self) -> None:
        self.lone_start = BoundedSemaphore(1)
        self._link: Link | None = None
        #: A new one each time that all channels are forgotten.  The link does not tell them apart:
        #: a consumer that was held up may still ask for the former link, between two for the present.
        self._life = object()
        #: By prefetch: subscriptions that need a channel, whether they have it or not.
        self._expected: Counter[int] = Counter()
        #: By prefetch: channels with room for one more consumer, the next to be used first.
        self._with_room: dict[int, deque[SharedChannel]] = {}
        #: By prefetch: the number of channels without room.
        self._full: Counter[int] = Counter()
        #: Channels without consumers.
        self._idle: list[SharedChannel] = []

    def expect(self, prefetch: int) -> None:
        """Note that one more subscription needs a channel, now and after each reconnect."""
        self._expected[prefetch] += 1

    def stop_expecting(self, prefetch: int) -> None:
        """Note that a subscription has ended."""
        self._expected[prefetch] -= 1

    def acquire(self, link: Link, prefetch: int, *, is_private: bool = False) -> SharedChannel:
        """Return a channel on *link* with room for one more consumer, which must :meth:`release` it.

        Arguments:
            prefetch: of the consumer.
            is_private: return one that no other consumer gets.
        """
        if link is not self._link:
            self.clear()
            self._link = link
        if is_private:
            shared = self._unused(prefetch)
            shared.is_private = True
        else:
            with_room = self._with_room.setdefault(prefetch, deque())
            while with_room and not with_room[0].is_usable:
                with_room.popleft()
            if with_room and len(with_room) >= self._needed(prefetch):
                shared = with_room.popleft()
            else:
                shared = self._unused(prefetch)
            if shared.consumers + 1 < CONSUMERS_PER_CHANNEL:
                with_room.append(shared)
            else:
                self._full[prefetch] += 1
        shared.consumers += 1
        return shared

    def _needed(self, prefetch: int) -> int:
        """Return the number of channels for the consumers that are not on full ones."""
        left = self._expected[prefetch] - self._full[prefetch] * CONSUMERS_PER_CHANNEL
        return -(-left // CONSUMERS_PER_CHANNEL)

    def _unused(self, prefetch: int) -> SharedChannel:
        while self._idle:
            shared = self._idle.pop()
            if shared.is_usable:
                shared.reuse(prefetch)
                return shared
        assert self._link is not None
        return SharedChannel(self._link, prefetch, self._life)

    def release(self, shared: SharedChannel) -> None:
        """Remove one consumer from *shared*, which stays open for the next ones."""
        shared.consumers -= 1
        if shared.life is not self._life:
            return
        if shared.is_private:
            shared.is_private = False
            self._idle.append(shared)
            return
        with_room = self._with_room[shared.prefetch]
        if shared.consumers == CONSUMERS_PER_CHANNEL - 1:
            self._full[shared.prefetch] -= 1
            with_room.append(shared)
        if not shared.consumers:
            if shared in with_room:  # else it was found closed
                with_room.remove(shared)
            self._idle.append(shared)

    def clear(self) -> None:
        """Forget all channels since the connection is closed."""
        self._link = None
        self._life = object()
        self._with_room = {}
        self._full = Counter()
        self._idle = []


class TaskState(State):
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
        """End it soon; ``on_end`` is called all the same.  A second call does nothing."""
        if self.state is TaskState.WAITING:
            self.end()
        elif self.state is TaskState.RUNNING:
            assert self.greenlet is not None
            self._move(TaskState.CANCELLED)
            self.greenlet.kill(block=False)

    def end(self) -> None:
        """Note that it has ended.  A second call does nothing."""
        if self.state is not TaskState.ENDED:
            self._move(TaskState.ENDED)
            self.greenlet = None
            self._on_end()

    def _move(self, state: TaskState) -> None:
        self.state = moved(self.state, state, TASK_MOVES, "a task")


class BackgroundTasks:
    """A queue of tasks, run in their order, at most :data:`TASKS_AT_ONCE` at once."""

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
        if self._waiting and len(self._running) < TASKS_AT_ONCE:
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
    """The consumers of one session: a member of it, which is recovered after each reconnect.

    Arguments:
        session: of their connection.

    Attributes:
        channels: the channels that they share.
        start_tasks, cancel_tasks: requests to the broker; apart, so that consumers that wait for an
            unavailable broker do not hold up those that end.
        pool: the greenlets that run their handlers.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.channels = SharedChannels()
        self.start_tasks = BackgroundTasks()
        self.cancel_tasks = BackgroundTasks()
        self.pool = WorkerPool()
        self.dead_letter_exchanges = DeadLetterExchanges(session)
        #: In the order in which they were added.
        self._consumers: dict[ConsumerLifecycle, None] = {}
        forget_at_fork(self)

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
        for prefetch in consumer.options.shares():
            self.channels.expect(prefetch)
        self.pool.resize(max(self.pool.limit, consumer.options.concurrency))

    def join_recovery(self) -> None:
        """Have the consumers recovered after reconnects, also when the session was closed meanwhile.

        Never switches.
        """
        self.session.add(self)

    def remove(self, consumer: ConsumerLifecycle) -> None:
        """Remove *consumer*, which has ended.  Never switches.  A second call does nothing."""
        if consumer not in self._consumers:
            return
        del self._consumers[consumer]
        for prefetch in consumer.options.shares():
            self.channels.stop_expecting(prefetch)
        if not self._consumers:
            self.session.discard(self)
            self.session.on_closed.remove(self._on_closed)
            self.pool.resize(0)

    def recover(self, deadline: Deadline) -> None:
        """Wait until all are recovered that can be recovered now.  May switch.

        Each consumer recovers and retries by itself.
        """
        for consumer in list(self._consumers):
            try:
                consumer.wait_recovered(deadline)
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
