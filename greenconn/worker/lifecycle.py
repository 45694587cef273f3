"""The life of a consumer.

A consumer is steered by callbacks of the hub, one after each change.  They run no handler and wait for
no reply of the broker, so it can always react to a change of the state that is asked for (run, pause,
stop, abort); consuming and cancelling are left to one background task at a time.  While nothing changes
a consumer is objects only.  A greenlet that waited would take 6.5 KiB more: a page for Python's frames,
which a greenlet never gives back, and a copy of the C stack.

So the consumer's greenlet begins when the consumer is to end, and runs that.  Whatever ends it, a last
task requeues what the consumer holds, even if the consumer's greenlet is killed again meanwhile.

One kind of loss needs more.  RabbitMQ waits for the ack of a delivery no longer than its consumer
timeout (30 min), and does not say which delivery it was: the one that has waited longest.  Up to 4.2 it
closes the channel.  4.3 has the timeout for quorum queues only: it cancels the consumer, without a
reason, and requeues its unacked messages.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from enum import IntEnum
from time import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gevent import Greenlet, get_hub

from greenconn.entity.declaration import ensure_queue_exists, has_messages
from greenconn.exceptions import (
    ConsumerCancelled,
    NotFound,
    PreconditionFailed,
    error_summary,
    error_text,
    is_unavailable,
)
from greenconn.green.deadline import NEVER, Deadline, TimeLimit
from greenconn.green.slot import Condition
from greenconn.green.supervisor import State, moved, name_of, spawn
from greenconn.transport.base import Link
from greenconn.worker.dispatch import BatchDispatcher, Dispatcher
from greenconn.worker.group import group_of
from greenconn.worker.handling import BatchHandling, Handling
from greenconn.worker.subscriptions import (
    ActiveReader,
    RecoveryOutcome,
    ShardBalance,
    ShardSubscription,
    Subscription,
    SubscriptionRecovery,
    known_errors,
)

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.connection import Connection
    from greenconn.message import Message
    from greenconn.worker.group import BackgroundTask
    from greenconn.worker.options import ConsumerOptions

logger = logging.getLogger("greenconn.worker")

#: RabbitMQ's words.
_TIMED_OUT: Final = "delivery acknowledgement on channel"

#: The first RabbitMQ that cancels a consumer for its consumer timeout.
_CANCELS_SINCE: Final = (4, 3)

#: Seconds that a consumer that is killed waits for the broker, and any that ends for its last offset.
CANCEL_TIMEOUT: Final = 2.0
#: The remedy for a queue that exists with other arguments than its consumer has.
MIGRATION: Final = (
    "; to consume the queue as it is, pass its name instead of a Queue; to change it, consume from a "
    "queue of another name, or delete this one while nothing publishes to it, and start again"
)


class ConsumerState(State):
    """A consumer's life."""

    #: The broker has not confirmed it yet.
    STARTING = "starting"
    #: The broker has confirmed it, on all its queues.
    RUNNING = "running"
    #: A queue, a channel or the connection was lost; it is being recovered.
    RECOVERING = "recovering"
    #: Cancelled by ``pause()``; running handlers go on.
    PAUSED = "paused"
    #: Cancelled for good; running handlers finish.
    STOPPING = "stopping"
    #: Ended gracefully.
    STOPPED = "stopped"
    #: Ended because the broker refuses it for good.
    FAILED = "failed"
    #: Ended by ``kill()``.
    KILLED = "killed"


#: From here there is no way back.
ENDS: Final = frozenset({ConsumerState.STOPPED, ConsumerState.FAILED, ConsumerState.KILLED})

MOVES: Final[Mapping[ConsumerState, frozenset[ConsumerState]]] = {
    ConsumerState.STARTING: frozenset(
        {ConsumerState.RUNNING, ConsumerState.PAUSED, ConsumerState.STOPPING, *ENDS}
    ),
    ConsumerState.RUNNING: frozenset(
        {ConsumerState.RECOVERING, ConsumerState.PAUSED, ConsumerState.STOPPING, *ENDS}
    ),
    ConsumerState.RECOVERING: frozenset(
        {ConsumerState.RUNNING, ConsumerState.PAUSED, ConsumerState.STOPPING, *ENDS}
    ),
    # STARTING: resumed.
    ConsumerState.PAUSED: frozenset({ConsumerState.STARTING, ConsumerState.STOPPING, *ENDS}),
    ConsumerState.STOPPING: ENDS,
    ConsumerState.STOPPED: frozenset(),
    ConsumerState.FAILED: frozenset(),
    ConsumerState.KILLED: frozenset(),
}


class TargetState(IntEnum):
    """The state that was last asked for; from STOPPED on there is no way back."""

    RUNNING = 0
    PAUSED = 1
    STOPPED = 2
    #: Stopped at once: the time of ``stop(timeout)`` is up.
    ABORTED = 3


class Stall(NamedTuple):
    """A consumer that gets nothing although its queue holds messages.

    Attributes:
        received: how many messages it had received then: with more it is over.
        since: when the last one came (``time.time()``).
        why, remedy: for the log and for probes.
        is_fatal: the process should be restarted.
    """

    received: int
    since: float
    why: str
    remedy: str
    is_fatal: bool


class ConsumerLifecycle:
    """The life of one consumer, which moves its parts.

    Arguments:
        options: the consumer's.
        connection: the program's.
        greenlet: the consumer's, which :meth:`run` is called in.

    Attributes:
        session: of the connection that it consumes on.
        group: what it shares with the other consumers of that connection.
        changed: wakes those who wait for a change.
        state: the consumer's.
        changed_at: when it has reached that (``time.time()``).
        stall: set by a :class:`~greenconn.service.health.Watchdog`.
        error: the broker's refusal that ends it; None before.
        is_ending: it is to pause or end: what failed is requeued instead of handled again, and it must
            know when no handler runs any more.
        is_cancelled: the broker has cancelled the consumer, and what no handler had begun was requeued.
    """

    __slots__ = (
        "_active",
        "_balance",
        "_cancelled",
        "_greenlet",
        "_hub",
        "_is_forgotten",
        "_is_killed",
        "_is_over",
        "_is_starting",
        "_loss",
        "_overdue",
        "_own_connection",
        "_queues",
        "_recovery",
        "_subscriptions",
        "_target",
        "_task",
        "_timer",
        "_will_steer",
        "changed",
        "changed_at",
        "connection",
        "dispatcher",
        "error",
        "group",
        "handling",
        "is_cancelled",
        "is_ending",
        "options",
        "session",
        "stall",
        "state",
    )

    def __init__(
        self, options: ConsumerOptions, connection: Connection, greenlet: Greenlet[..., Any]
    ) -> None:
        self.options = options
        self.changed = Condition()
        self._hub = get_hub()
        self._greenlet = greenlet
        self.connection = connection
        #: A callback that steers is on its way.
        self._will_steer = False
        #: Steers when a pause of the recovery is over.
        self._timer: Any = None
        #: The greenlet has been started, and there is nothing more to steer.
        self._is_over = self._is_killed = False
        self.session = connection.session
        # To spawn a consumer opens a closed connection again, unless that is closed once more.
        self.session.note_use()
        self._own_connection: Connection | None = None
        if options.is_unbounded:
            # It may stop the reading of its connection: it must not hold up others.
            self._own_connection = connection.clone()
            self.session = self._own_connection.session
            self.session.purpose = f"consumer {options.name}"
            connection.session.on_closed.append(self.shut_down)
        self.group = group = group_of(self.session)
        self.is_ending = False
        is_batched = options.batch_size is not None
        self.handling = (BatchHandling if is_batched else Handling)(self)
        self.dispatcher = (BatchDispatcher if is_batched else Dispatcher)(self)
        #: Where only one reader of a name is active, one for each queue.
        self._active = tuple(
            ActiveReader(self, queue) for queue in (options.queues if options.single_active else ())
        )
        rights = iter(self._active)
        shares = zip(options.queues, options.shares(), strict=True)
        self._queues: tuple[Subscription, ...]
        self._balance: ShardBalance | None = None
        if options.is_sharded:
            shards = tuple(ShardSubscription(self, queue, share) for queue, share in shares)
            self._queues, self._balance = shards, ShardBalance(self, shards)
        else:
            self._queues = tuple(
                Subscription(self, queue, share, next(rights, None)) for queue, share in shares
            )
        #: All; the right to read a queue is asked for before.
        self._subscriptions: tuple[Subscription, ...] = self._active + self._queues
        self._recovery = SubscriptionRecovery(self, self._subscriptions)
        self.state = ConsumerState.STARTING
        self.changed_at = time()
        self.stall: Stall | None = None
        self.error: BaseException | None = None
        self.is_cancelled = False
        self._target = TargetState.RUNNING
        self._loss: BaseException | None = None
        self._overdue: OverdueDelivery | None = None
        #: Those that the broker has cancelled, until it is clear why.
        self._cancelled: list[CancelledConsumer] = []
        self._task: BackgroundTask | None = None
        self._is_starting = self._is_forgotten = False
        self._expect_queues()
        group.pool.monitor.watch(options.handler, options.blocking_threshold, options.name or "")
        group.add(self)

    @property
    def is_confirmed(self) -> bool:
        """Whether the broker has confirmed all queues, and nothing was lost since."""
        return self._target is TargetState.RUNNING and all(
            each.is_confirmed for each in self._subscriptions
        )

    @property
    def has_run(self) -> bool:
        """Whether the broker has ever confirmed it."""
        return self._recovery.has_succeeded

    @property
    def addresses(self) -> Hashable:
        """Addresses of its broker."""
        return self.session.broker.addresses

    @property
    def is_pausing(self) -> bool:
        """Whether a pause was asked for."""
        return self._target is TargetState.PAUSED

    # Requests; nothing here switches

    def request(self, target: TargetState) -> None:
        """Have it become *target*, unless it is further on its way to the end already."""
        if target <= self._target or self.state in ENDS:
            return
        self._target = target
        self.is_ending = True
        self._stop_expecting()
        if target is not TargetState.STOPPED or not self.options.no_ack:
            self.dispatcher.is_held = True
        if target is TargetState.PAUSED:
            self._move(ConsumerState.PAUSED)
        elif target is TargetState.STOPPED:
            self._move(ConsumerState.STOPPING)
            if self.options.no_ack:
                self.is_cancelled = False  # what a pause has held back is handled now
        self.note_change()

    def resume(self) -> None:
        """End a pause."""
        if self._target is TargetState.PAUSED and self.state not in ENDS:
            self._target = TargetState.RUNNING
            self._expect_queues()
            self._move(ConsumerState.STARTING)

    def _expect_queues(self) -> None:
        for subscription in self._subscriptions:
            if not subscription.is_confirmed:
                subscription.expect()

    def _stop_expecting(self) -> None:
        for subscription in self._subscriptions:
            subscription.stop_expecting()

    def fail(self, exc: BaseException) -> None:
        """End it with *exc*: the broker refuses it for good."""
        if self.error is None and self._target < TargetState.STOPPED:
            self.error = exc
            # In another greenlet, as a log handler may switch.
            spawn(
                "log",
                logger.error,
                "consumer of queue %s failed: %s%s",
                self.options.name,
                error_summary(exc),
                MIGRATION if isinstance(exc, PreconditionFailed) else "",
                # Of what should not happen, the class and the text do not tell where.
                exc_info=None if isinstance(exc, known_errors(self.session)) else exc,
                extra=self.fields(),
            )
        self.request(TargetState.STOPPED)

    def shut_down(self) -> None:
        """Shut down gracefully: the program has closed the connection, or is about to end."""
        self.request(TargetState.STOPPED)

    def forget(self) -> None:
        """End silently after a fork, in the child: the consumer is the parent's."""
        self._is_forgotten = True
        self._stop_expecting()
        for subscription in self._subscriptions:
            subscription.forget()
        if self._balance is not None:
            self._balance.stop()
        self.dispatcher.forget()
        self._target = TargetState.ABORTED
        self.note_change()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._is_killed = True
        self._end()

    # Steering

    def steer_soon(self) -> None:
        """Have the hub do what the state that is asked for needs next.  Never switches."""
        if self._will_steer:
            return
        self._will_steer = True
        if get_hub() is self._hub:
            self._hub.loop.run_callback(self._steer)
        else:  # its connection was closed in another thread
            self._hub.loop.run_callback_threadsafe(self._steer)

    def note_change(self) -> None:
        """Wake those who wait for a change, and steer soon.  Never switches."""
        self.changed.wake_all()
        self.steer_soon()

    def _steer(self) -> None:
        # In the hub.
        self._will_steer = False
        self._stop_timer()
        if self._is_over:
            return
        target, task = self._target, self._task
        if target is TargetState.ABORTED:
            self._end()
        elif task is not None:
            if self._is_starting and target is not TargetState.RUNNING:
                task.cancel()
        elif target is TargetState.RUNNING:
            self._unpause()
            if not self.is_confirmed:
                self._restart()
            else:
                self._move(ConsumerState.RUNNING)  # resumed before the pause had any effect
        elif not self.is_cancelled:
            self._is_starting = False
            submit = self.group.cancel_tasks.submit
            self._task = submit(self._cancel_and_requeue, self._on_task_end)
        elif target is TargetState.STOPPED and self.dispatcher.is_idle:
            self._end()

    def _restart(self) -> None:
        """Start what is not confirmed, now or when the pause of the recovery is over."""
        pause = self._recovery.pause
        if pause:
            self._timer = self._hub.loop.timer(pause)
            self._timer.start(self._steer, update=True)
        else:
            self._is_starting = True
            submit = self.group.start_tasks.submit
            self._task = submit(self._start, self._on_task_end)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _end(self) -> None:
        self._is_over = True
        self._stop_timer()
        Greenlet.start(self._greenlet)

    # The consumer's greenlet

    def run(self) -> None:
        """End the consumer, and leave nothing behind.  May switch."""
        end = ConsumerState.STOPPED if self.error is None else ConsumerState.FAILED
        if self._is_killed:
            end = ConsumerState.KILLED
        is_abrupt = self._is_killed or self._target is TargetState.ABORTED
        try:
            if not self._is_forgotten:
                spawn("consumer-end", self._clean_up, is_abrupt).join()
        finally:
            self._move(end)

    def _unpause(self) -> None:
        """Let handlers begin again after a pause."""
        if self.dispatcher.is_held:
            self.is_cancelled = self.is_ending = self.dispatcher.is_held = False
            self.dispatcher.call_worker()

    def _on_task_end(self) -> None:
        self._task = None
        self.note_change()

    # Background tasks

    def _start(self) -> None:
        """Start the consumer on each queue that is not confirmed."""
        loss, self._loss = self._loss, None
        overdue, self._overdue = self._overdue, None
        if overdue is not None:
            overdue.log()
        if isinstance(loss, ConsumerCancelled):
            logger.warning(
                "consumer of queue %s is restarted: %s",
                self.options.name,
                loss,
                extra=self.fields(),
            )
        elif loss is not None:
            logger.info(
                "consumer of queue %s is restarted: %s",
                self.options.name,
                loss,
                extra=self.fields(),
            )
        while self._cancelled:
            self._cancelled[0].resolve()
            del self._cancelled[0]
        for queue in self._queues:
            if queue.must_stand_down:
                self._stand_down(queue)
        outcome = self._recovery.attempt()
        if outcome is RecoveryOutcome.CLOSED:
            self.shut_down()
        elif isinstance(outcome, BaseException):
            self.fail(outcome)
        elif self.is_confirmed:
            self.group.join_recovery()
            if self._balance is not None:
                self._balance.start()
            if self.state is ConsumerState.STARTING and logger.isEnabledFor(logging.INFO):
                logger.info(
                    "consuming %s: %s, concurrency %d",
                    ", ".join(each.name for each in self._queues),
                    name_of(self.options.handler),
                    self.options.concurrency,
                    extra=self.fields(),
                )
            self._move(ConsumerState.RUNNING)

    def _stand_down(self, queue: Subscription) -> None:
        """Read no more of a stream that another reader of this name may read now."""
        logger.info(
            "consumer of queue %s is not the active one any more",
            queue.name,
            extra=self.fields(queue.name),
        )
        tag, channel = queue.tag, queue.channel
        try:
            queue.stand_down()
        except Exception as exc:
            # It ends with its channel then; what has come must not be handled here all the same.
            logger.debug("cancelling %r: %s", queue, error_text(exc), extra=self.fields(queue.name))
        if channel is not None:
            for message, has_begun in self.dispatcher.drop(channel, tag):
                self.handling.requeue(message, has_begun=has_begun)

    def _cancel_and_requeue(self) -> None:
        """Cancel the consumer, and requeue what no handler has begun."""
        if self.options.keeps_order:
            self._hand_over(NEVER)
            self.is_cancelled = True
            return
        self._cancel()
        if not self.options.no_ack:
            self._requeue_all()
            if self._target is TargetState.PAUSED:
                if self._active:
                    self._let_others_read()
                self.flush_settlements(NEVER)
        elif self._target is TargetState.STOPPED:
            self.dispatcher.is_held = False
            self.dispatcher.stop_batching()
            self.dispatcher.call_worker()
        self.is_cancelled = True

    def _cancel(self, *, nowait: bool = False) -> None:
        for subscription in self._queues:
            try:
                subscription.cancel(nowait=nowait)
            except Exception as exc:
                logger.debug(
                    "cancelling %r: %s",
                    subscription,
                    error_text(exc),
                    extra=self.fields(subscription.name),
                )

    def _cancel_soon(self) -> None:
        """Cancel, and wait for the reply of the broker, at most :data:`CANCEL_TIMEOUT`."""
        try:
            with TimeLimit(Deadline(CANCEL_TIMEOUT), "cancelling"):
                self._cancel()
        except TimeoutError as exc:
            logger.debug(
                "consumer of queue %s: %s", self.options.name, error_text(exc), extra=self.fields()
            )
            self._cancel(nowait=True)

    def _hand_over(self, deadline: Deadline) -> None:
        """Have the broker take all messages back in their order, when no handler runs any more.

        Before, no other consumer gets one: an earlier message of its key may be in a handler here.
        """
        dispatcher = self.dispatcher
        if self._balance is not None:
            self._balance.stop()
        dispatcher.take_back()
        dispatcher.stop_retries()
        while not dispatcher.is_idle:
            self.changed.wait(NEVER)
        self.flush_settlements(deadline)
        for subscription in self._queues:
            try:
                subscription.close()
            except Exception as exc:
                logger.debug(
                    "closing the channel of %r: %s",
                    subscription,
                    error_text(exc),
                    extra=self.fields(subscription.name),
                )
        while self._cancelled:
            self._cancelled.pop(0).requeue()
        for message, has_begun in dispatcher.take_all():
            self.handling.requeued += 1
            self.handling.forget(message, has_begun=has_begun)

    def _requeue_all(self) -> None:
        while self._cancelled:
            self._cancelled.pop(0).requeue()
        for message, has_begun in self.dispatcher.take_all():
            self.handling.requeue(message, has_begun=has_begun)

    def requeue_of(self, channel: Channel) -> None:
        """Requeue what came on *channel* and no handler runs with.  May switch."""
        for message, has_begun in self.dispatcher.drop(channel):
            self.handling.requeue(message, has_begun=has_begun)

    def _clean_up(self, is_abrupt: bool) -> None:
        """Release all that the consumer holds, at its end."""
        if is_abrupt:
            self.dispatcher.is_held = self.is_ending = True
            self._cancel_task()
            if self.options.keeps_order:
                self.dispatcher.interrupt()
                self._hand_over(Deadline(CANCEL_TIMEOUT))
            else:
                # First of all, so that what is requeued is not redelivered here.
                cancelling = spawn("consumer-cancel", self._cancel_soon)
                self.dispatcher.interrupt()
                cancelling.join()
                self._requeue_all()
                while not self.dispatcher.is_idle:
                    self.changed.wait(NEVER)
        self._let_others_read()
        self.flush_settlements(Deadline(CANCEL_TIMEOUT) if is_abrupt else NEVER)
        self.handling.flush_limits(Deadline(CANCEL_TIMEOUT))
        if self.handling.dropped:
            logger.warning(
                "consumer of queue %s: %d messages are lost, as it has no_ack and was closed before "
                "it handled them",
                self.options.name,
                self.handling.dropped,
                extra=self.fields(),
            )
        if self._own_connection is not None:
            self._own_connection.close()

    def flush_settlements(self, deadline: Deadline) -> None:
        """Wait until the broker has the acks and requeues, or its link is lost.  May switch."""
        link = self.session.life.link
        try:
            if isinstance(link, Link):
                link.flush_settlements(deadline)
        except TimeoutError as exc:
            logger.warning(
                "consumer of queue %s has ended, and the broker may not have all of its acks and "
                "requeues: %s",
                self.options.name,
                error_text(exc),
                extra=self.fields(),
            )
        except Exception as exc:
            logger.debug(
                "consumer of queue %s: settling: %s",
                self.options.name,
                error_text(exc),
                extra=self.fields(),
            )

    def _let_others_read(self) -> None:
        """Store the last offsets, and let another reader of this name begin there."""
        deadline = Deadline(CANCEL_TIMEOUT)
        for queue in self._queues:
            queue.store_offset(deadline)
        for active in self._active:
            active.release(deadline)

    def _cancel_task(self) -> None:
        """End the task under way, and wait until it has ended.  May switch."""
        task = self._task
        if task is None:
            return
        greenlet = task.greenlet
        task.cancel()
        if greenlet is not None:
            greenlet.join()

    def note_end(self) -> None:
        """Leave the group, and wake those who wait, once its greenlet is dead.  In the hub."""
        self._stop_expecting()
        self.group.remove(self)
        if self._own_connection is not None:
            on_closed = self.connection.session.on_closed
            if self.shut_down in on_closed:
                on_closed.remove(self.shut_down)
        if self.state not in ENDS:
            self._move(ConsumerState.KILLED)
        self.changed.wake_all()

    # Changes

    def on_lost(self, subscription: Subscription, channel: Channel, exc: BaseException) -> None:
        """Note that a subscription has ended, and see that it is begun again.  In the reader."""
        if isinstance(exc, ConsumerCancelled):
            subscription.forget_declaration()
            self._cancelled.append(CancelledConsumer(self, subscription, channel))
        else:
            overdue = find_overdue(self, subscription, channel, exc)
            if overdue is not None:
                self._overdue = overdue
                subscription.fails_alone = True  # the next failure affects no other consumer
            if not self.options.no_ack:
                for message, has_begun in self.dispatcher.drop(channel):
                    self.handling.forget(message, has_begun=has_begun)
        if self._target is TargetState.RUNNING and not self._is_over:
            subscription.expect()
        if self.state is ConsumerState.RUNNING:
            self._move(ConsumerState.RECOVERING)
            if channel.connection.is_open:
                # Not lost with the connection, which has its own log and its own back-off.
                self._loss = exc
                self._recovery.note_loss()
        self.note_change()

    def queue_of(self, message: Message) -> str:
        """Return the name of the queue of *message*."""
        subscription = self._subscription_of(message)
        return (self.options.name or "") if subscription is None else subscription.name

    def _subscription_of(self, message: Message) -> Subscription | None:
        """Return the one that received *message*, which may have another consumer tag by now."""
        return next((each for each in self._queues if each.has_received(message)), None)

    def fields(self, queue: str | None = None) -> dict[str, object]:
        """Return what a log record says of this consumer; *queue*: of which of its queues."""
        return {
            "consumer": self.options.name,
            "queue": queue or ", ".join(each.name for each in self._queues),
            "connection": self.session.broker.label,
        }

    @property
    def current_stall(self) -> Stall | None:
        """The stall that a watchdog has found, unless a message has come since."""
        stall = self.stall
        return stall if stall is not None and stall.received == self.dispatcher.received else None

    @property
    def failure(self) -> str | None:
        """Class and text of the error for which it is not confirmed; None once it is."""
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        return self._recovery.failure

    def has_waiting_messages(self, deadline: Deadline) -> bool:
        """Return whether one of its queues holds messages that no consumer has.  May switch.

        Streams are left out, and queues with a single active consumer.

        Raises:
            Exception: what the broker or the connection did.
        """
        return any(
            has_messages(self.session, each.name, deadline)
            for each in self._queues
            if not each.is_shown_to_others(self._arguments_of(each))
        )

    def _arguments_of(self, subscription: Subscription) -> Mapping[str, Any]:
        """Return the arguments of a queue, as far as they are known."""
        # Those that were declared: the queue may have others than its consumer asked for.
        arguments = self.session.topology.arguments_of(subscription.name)
        if arguments is None:
            arguments = subscription.arguments
        return arguments or {}

    def outlives_consumer(self, message: Message) -> bool:
        """Return whether the queue of *message* is there when its consumers are gone."""
        subscription = self._subscription_of(message)
        return subscription is not None and subscription.outlives_consumer

    def is_nameless(self, message: Message) -> bool:
        """Return whether the name of the queue of *message* was made up."""
        subscription = self._subscription_of(message)
        return subscription is not None and subscription.is_nameless

    def is_of_stream(self, message: Message) -> bool:
        """Return whether the queue of *message* is known to be a stream."""
        subscription = self._subscription_of(message)
        return subscription is not None and subscription.is_stream

    def has_dead_letters(self, message: Message) -> bool:
        """Return whether the queue of *message* is known to have a dead-letter exchange.  May switch."""
        subscription = self._subscription_of(message)
        if subscription is None:
            return False
        arguments = self._arguments_of(subscription)
        return self.group.dead_letter_exchanges.has(subscription.name, message, arguments)

    def _move(self, state: ConsumerState) -> None:
        if state is not self.state:
            self.state = moved(self.state, state, MOVES, "a consumer")
            self.changed_at = time()
            self.note_change()

    def wait_recovered(self, deadline: Deadline) -> None:
        """Wait until it is confirmed again, or it is clear that this takes longer.  May switch.

        Raises:
            TimeoutError: it was not before the deadline.
        """
        while (
            self._target is TargetState.RUNNING
            and self.state not in ENDS
            and not self.is_confirmed
            and not self._recovery.pause
        ):
            self.changed.wait(deadline)


class OverdueDelivery(NamedTuple):
    """A delivery that was not settled in time, as it is logged."""

    queue: str
    delivery_tag: Any
    is_handled: bool
    handler: str
    outcome: str

    def log(self) -> None:
        """Log whose it was.  May switch."""
        logger.error(
            "delivery %s of queue %r %s for longer than the broker's consumer timeout; %s",
            self.delivery_tag,
            self.queue,
            f"was in its handler {self.handler}"
            if self.is_handled
            else f"waited for its handler {self.handler}",
            self.outcome,
            extra={"queue": self.queue, "delivery_tag": self.delivery_tag},
        )


def find_overdue(
    consumer: ConsumerLifecycle, subscription: Subscription, channel: Channel, exc: BaseException
) -> OverdueDelivery | None:
    """Return the delivery that the broker has waited for, if *subscription* got it.  Never switches.

    Arguments:
        exc: why *channel* was closed.
    """
    if not isinstance(exc, PreconditionFailed) or _TIMED_OUT not in str(exc):
        return None
    oldest = getattr(channel, "oldest_unacked", None)
    for message, is_handled in consumer.dispatcher.unacked():
        if message.delivery_tag == oldest and _is_of(message, subscription.tag, channel):
            outcome = (
                f"its channel was closed with all consumers, and the message is redelivered: {exc}"
            )
            handler = consumer.handling.name
            return OverdueDelivery(subscription.name, oldest, is_handled, handler, outcome)
    return None


def _is_of(message: Message, tag: str, channel: Channel) -> bool:
    return message.channel is channel and message.delivery_info.get("consumer_tag") == tag


class CancelledConsumer:
    """A consumer that the broker has cancelled, and what waits here for its handler.

    If its queue was deleted, these are the last copies of their messages, and are handled.  If the
    queue is there, the broker has taken them back, so they are given up here.  The broker does not
    say which it is, so the queue is looked for.

    Nothing switches while this is made, in the reader.

    Arguments:
        consumer: its life; its messages of this life are taken out.
        subscription: what the broker has cancelled.
        channel: where it consumed.
    """

    def __init__(
        self, consumer: ConsumerLifecycle, subscription: Subscription, channel: Channel
    ) -> None:
        self._consumer = consumer
        self._queue = subscription.name
        self._channel = channel
        self._overdue = self._oldest(subscription.tag)
        is_no_ack = consumer.options.no_ack
        self._held = [] if is_no_ack else consumer.dispatcher.drop(channel, subscription.tag)

    def _oldest(self, tag: str) -> OverdueDelivery | None:
        version = getattr(self._channel.connection, "server_version", None)
        if version is None or version < _CANCELS_SINCE or self._consumer.options.no_ack:
            return None
        unacked = [
            (message.delivery_tag, is_handled)
            for message, is_handled in self._consumer.dispatcher.unacked()
            if _is_of(message, tag, self._channel) and not message.acknowledged
        ]
        if not unacked:
            return None
        outcome = (
            "the broker cancelled the consumer and requeued its unacked messages, which a new "
            "one gets: ack sooner, lower the prefetch_count, or raise consumer_timeout "
            "or the queue's x-consumer-timeout"
        )
        return OverdueDelivery(self._queue, *min(unacked), self._consumer.handling.name, outcome)

    def resolve(self) -> None:
        """Find out why it was cancelled, and handle its messages or give them up.  May switch."""
        if self._channel.is_open and not self._is_queue_there():
            self._consumer.session.topology.queue_deleted(self._queue)
            held, self._held = self._held, []
            self._consumer.dispatcher.put_dropped(message for message, _ in held)
            return
        if self._channel.is_open and self._overdue is not None:
            overdue, self._overdue = self._overdue, None
            overdue.log()
        self.requeue()

    def _is_queue_there(self) -> bool:
        try:
            ensure_queue_exists(self._consumer.session, self._queue, Deadline(), passive=True)
        except NotFound as exc:
            return bool(is_unavailable(exc))
        except Exception as exc:
            logger.debug(
                "checking queue %r: %s", self._queue, error_text(exc), extra={"queue": self._queue}
            )
        return True

    def requeue(self) -> None:
        """Put the messages back; a broker that has done so already ignores that.  May switch."""
        while self._held:
            message, has_begun = self._held.pop()
            self._consumer.handling.requeue(message, has_begun=has_begun)
