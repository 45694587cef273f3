"""What a consumer does about its queues and its handlers, from the beginning to the end.

It is run by the consumer's greenlet, which runs no handler and asks nothing of the broker itself, so
that it can always be told something: it waits for changes, and sends one *errand* at a time (a
greenlet that lives as long as the errand) to get the queues confirmed or to give them up.  While
nothing changes a consumer is one greenlet that waits.

Whatever ends it, a last errand gives back what the consumer holds; it goes on even if the consumer's
greenlet is killed once more meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final

from greenconn.exceptions import ConsumerCancelled, PreconditionFailed
from greenconn.green.deadline import Deadline
from greenconn.green.limit import Limit
from greenconn.green.supervisor import spawn
from greenconn.worker.batch import BatchLine
from greenconn.worker.crew import crew_of
from greenconn.worker.errands import Errand
from greenconn.worker.handling import BatchHandling, Handling
from greenconn.worker.line import Line
from greenconn.worker.overdue import Cancelled, Overdue, overdue_in
from greenconn.worker.plan import Plan
from greenconn.worker.pool import WorkerPool
from greenconn.worker.restoring import Outcome, Restorer
from greenconn.worker.state import ENDS, ConsumerState, Wish, moved
from greenconn.worker.subscription import Subscription
from greenconn.worker.watch import Watch

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.connection import Connection
    from greenconn.message import Message

__all__ = ["Conductor"]

logger = logging.getLogger("greenconn.worker")

#: Seconds that a consumer that is killed waits for the broker.
CANCEL_TIMEOUT: Final = 2.0
#: What to do about a queue that exists with other arguments than its consumer has.
MIGRATION: Final = (
    "; to consume the queue as it is, give its name instead of a Queue; to change it, consume from a "
    "queue of another name, or empty and delete this one while nobody publishes to it, and start again"
)
_ENDLESS: Final = Deadline()


class Conductor:
    """The parts of one consumer, and who moves them.

    Arguments:
        plan: what the consumer shall do.
        connection: the program's.

    Attributes:
        watch: wakes who waits for a change.
        state: where the consumer is in its life.
        error: what the broker refused it for; None while it does not.
        is_withdrawn: the broker was told to send no more, and what no handler began was given back.
    """

    __slots__ = (
        "_cancelled",
        "_crew",
        "_errand",
        "_is_forgotten",
        "_is_restoring",
        "_loss",
        "_overdue",
        "_own_connection",
        "_parent",
        "_restorer",
        "_session",
        "_subscriptions",
        "_wish",
        "error",
        "handling",
        "is_withdrawn",
        "line",
        "plan",
        "state",
        "watch",
    )

    def __init__(self, plan: Plan, connection: Connection) -> None:
        self.plan = plan
        self.watch = Watch()
        self._parent = self._session = connection.session
        self._own_connection: Connection | None = None
        if plan.is_unbounded:
            # It may stop the reading of its connection: it must not hold up others.
            self._own_connection = connection.clone()
            self._session = self._own_connection.session
            self._parent.on_closed.append(self.wind_down)
        self._crew = crew = crew_of(self._session)
        self.handling = (Handling if plan.batch_size is None else BatchHandling)(
            plan, self._queue_of
        )
        self.line = _line_for(plan, crew.pool, self.handling)
        self.handling.put_again = self.line.put_again
        self.handling.on_exit = self.wind_down
        self.handling.has_dead_letters = self._has_dead_letters
        self._subscriptions = tuple(
            Subscription(plan, queue, share, self.line, self._on_lost, self._on_closing)
            for queue, share in zip(plan.queues, plan.shares(), strict=True)
        )
        self._restorer = Restorer(self._session, crew.berths, self._subscriptions)
        self.state = ConsumerState.STARTING
        self.error: BaseException | None = None
        self.is_withdrawn = False
        self._wish = Wish.RUN
        self._loss: BaseException | None = None
        self._overdue: Overdue | None = None
        #: What the broker has cancelled, until it is clear why.
        self._cancelled: list[Cancelled] = []
        self._errand: Errand | None = None
        self._is_restoring = self._is_forgotten = False
        self._expect_queues()
        crew.pool.monitor.know(plan.handler, plan.blocking_threshold, plan.name or "")
        crew.enter(self)

    @property
    def is_confirmed(self) -> bool:
        """Whether the broker has confirmed all queues, and nothing was lost since."""
        return self._wish is Wish.RUN and all(each.is_confirmed for each in self._subscriptions)

    @property
    def addresses(self) -> Hashable:
        """Those of its broker."""
        return self._session.broker.addresses

    @property
    def is_pausing(self) -> bool:
        """Whether a pause is wished."""
        return self._wish is Wish.PAUSE

    # Wishes; nothing here switches

    def ask(self, wish: Wish) -> None:
        """Have it become what *wish* says, unless it is further on its way to the end already."""
        if wish <= self._wish or self.state in ENDS:
            return
        self._wish = wish
        self.handling.is_ending = True
        # Not before: a consumer that is not busy is idle after nearly each message.
        self.line.on_idle = self.watch.announce
        self._settle_queues()
        if wish is not Wish.STOP or not self.plan.no_ack:
            self.line.is_held = True
        if wish is Wish.PAUSE:
            self._move(ConsumerState.PAUSED)
        elif wish is Wish.STOP:
            self._move(ConsumerState.STOPPING)
            if self.plan.no_ack:
                self.is_withdrawn = False  # what a pause has kept is handled now
        self.watch.announce()

    def resume(self) -> None:
        """Wish no pause any more."""
        if self._wish is Wish.PAUSE and self.state not in ENDS:
            self._wish = Wish.RUN
            self._expect_queues()
            self._move(ConsumerState.STARTING)

    def _expect_queues(self) -> None:
        for subscription in self._subscriptions:
            if not subscription.is_confirmed:
                subscription.expect(self._session)

    def _settle_queues(self) -> None:
        for subscription in self._subscriptions:
            subscription.settle()

    def fail(self, exc: BaseException) -> None:
        """End it with *exc*: the broker refuses it for good."""
        if self.error is None and self._wish < Wish.STOP:
            self.error = exc
            logger.error(
                "consumer of queue %s ends: %s: %s%s",
                self.plan.name,
                type(exc).__name__,
                exc,
                MIGRATION if isinstance(exc, PreconditionFailed) else "",
            )
        self.ask(Wish.STOP)

    def wind_down(self) -> None:
        """The program has closed the connection, or is about to end: stop in good order."""
        self.ask(Wish.STOP)

    def forget(self) -> None:
        """After a fork, in the child: it is the parent's."""
        self._is_forgotten = True
        self._settle_queues()
        self.line.forget()
        self._wish = Wish.END
        self.watch.announce()

    # The consumer's greenlet

    def run(self) -> None:
        """Do what is wished until the end, and leave nothing behind.  May switch."""
        end = ConsumerState.KILLED
        try:
            self._conduct()
            end = ConsumerState.STOPPED if self.error is None else ConsumerState.FAILED
        finally:
            is_abrupt = end is ConsumerState.KILLED or self._wish is Wish.END
            try:
                if not self._is_forgotten:
                    spawn("consumer-end", self._clear_up, is_abrupt).join()
            finally:
                self._move(end)

    def _conduct(self) -> None:
        while self._wish is not Wish.END:
            deadline, errand = _ENDLESS, self._errand
            if errand is not None:
                if self._is_restoring and self._wish is not Wish.RUN:
                    errand.call_off()
                    if errand.is_over:
                        continue  # it had not begun
            elif self._wish is Wish.RUN:
                self._let_go()
                if not self.is_confirmed:
                    pause = self._restorer.pause
                    if pause:
                        deadline = Deadline(pause)
                    else:
                        self._is_restoring = True
                        send = self._crew.restoring.send
                        self._errand = send(self._restore, self._on_errand_over)
            elif not self.is_withdrawn:
                self._is_restoring = False
                send = self._crew.withdrawing.send
                self._errand = send(self._withdraw, self._on_errand_over)
            elif self._wish is Wish.STOP and self.line.is_idle:
                return
            try:
                self.watch.wait(deadline)
            except TimeoutError:
                pass  # the pause is over

    def _let_go(self) -> None:
        """After a pause: let handlers begin again."""
        if self.line.is_held:
            self.is_withdrawn = self.handling.is_ending = self.line.is_held = False
            self.line.stir()

    def _on_errand_over(self) -> None:
        self._errand = None
        self.watch.announce()

    # Errands

    def _restore(self) -> None:
        """Get all queues confirmed."""
        loss, self._loss = self._loss, None
        overdue, self._overdue = self._overdue, None
        if overdue is not None:
            overdue.log()
        if isinstance(loss, ConsumerCancelled):
            logger.warning("consumer of queue %s is started again: %s", self.plan.name, loss)
        elif loss is not None:
            logger.info("consumer of queue %s is started again: %s", self.plan.name, loss)
        while self._cancelled:
            self._cancelled[0].settle(self._session)
            del self._cancelled[0]
        outcome = self._restorer.attempt()
        if outcome is Outcome.CLOSED:
            self.wind_down()
        elif isinstance(outcome, Exception):
            self.fail(outcome)
        elif self.is_confirmed:
            self._crew.rejoin()
            self._move(ConsumerState.RUNNING)

    def _withdraw(self) -> None:
        """Have the broker send no more, and give back what no handler has begun."""
        self._cancel()
        if not self.plan.no_ack:
            self._give_back()
        elif self._wish is Wish.STOP:
            self.line.is_held = False
            self.line.hurry()
            self.line.stir()
        self.is_withdrawn = True

    def _cancel(self, *, nowait: bool = False) -> None:
        for subscription in self._subscriptions:
            try:
                subscription.cancel(self._crew.berths, nowait=nowait)
            except Exception as exc:
                logger.debug("cancelling %r: %s", subscription, exc)

    def _cancel_soon(self) -> None:
        """Cancel, but let a broker that does not answer hold nobody up."""
        try:
            with Limit(Deadline(CANCEL_TIMEOUT), "cancelling"):
                self._cancel()
        except TimeoutError as exc:
            logger.debug("consumer of queue %s: %s", self.plan.name, exc)
            self._cancel(nowait=True)

    def _give_back(self) -> None:
        while self._cancelled:
            self._cancelled.pop(0).give_back()
        for message, has_begun in self.line.take_all():
            self.handling.give_back(message, has_begun=has_begun)

    def _on_closing(self, channel: Channel) -> None:
        """Give back what came on *channel*, which the program closes."""
        for message, has_begun in self.line.drop(channel):
            self.handling.give_back(message, has_begun=has_begun)

    def _clear_up(self, is_abrupt: bool) -> None:
        """The last errand."""
        if is_abrupt:
            self.line.is_held = self.handling.is_ending = True
            self.line.on_idle = self.watch.announce
            self._call_off_errand()
            # First of all, so that what is given back does not come here again.
            cancelling = spawn("consumer-cancel", self._cancel_soon)
            self.line.interrupt()
            cancelling.join()
            self._give_back()
            while not self.line.is_idle:
                self.watch.wait(_ENDLESS)
        if self.handling.dropped:
            logger.warning(
                "consumer of queue %s dropped %d messages: they needed no ack, so they are gone",
                self.plan.name,
                self.handling.dropped,
            )
        if self._own_connection is not None:
            self._own_connection.close()

    def _call_off_errand(self) -> None:
        """End the errand under way, and wait until it has ended.  May switch."""
        errand = self._errand
        if errand is None:
            return
        greenlet = errand.greenlet
        errand.call_off()
        if greenlet is not None:
            greenlet.join()

    def bury(self) -> None:
        """Its greenlet is dead: leave the crew, and tell who waits.  In the hub."""
        self._settle_queues()
        self._crew.leave(self)
        if self._own_connection is not None and self.wind_down in self._parent.on_closed:
            self._parent.on_closed.remove(self.wind_down)
        if self.state not in ENDS:
            self._move(ConsumerState.KILLED)  # before it began
        self.watch.announce()

    # Changes

    def _on_lost(self, subscription: Subscription, channel: Channel, exc: BaseException) -> None:
        # In the reader.
        if isinstance(exc, ConsumerCancelled):
            subscription.forget_declaration(self._session)
            self._cancelled.append(
                Cancelled(self.line, self.handling, subscription.name, subscription.tag, channel)
            )
        else:
            overdue = overdue_in(
                self.line,
                self.handling.name,
                subscription.name,
                subscription.tag,
                channel,
                exc,
            )
            if overdue is not None:
                self._overdue = overdue
                subscription.fails_alone = True  # the next time nobody else shall suffer
            if not self.plan.no_ack:
                for message, _ in self.line.drop(channel):
                    self.handling.forget(message)
        if self._wish is Wish.RUN:
            subscription.expect(self._session)
        if self.state is ConsumerState.RUNNING:
            self._move(ConsumerState.RECOVERING)
            if channel.connection.is_open:
                # Not lost with the connection, which has its own log and its own back-off.
                self._loss = exc
                self._restorer.note_loss()
        self.watch.announce()

    def _queue_of(self, message: Message) -> str:
        tag = message.delivery_info.get("consumer_tag")
        for subscription in self._subscriptions:
            if subscription.tag == tag:
                return subscription.name
        return self.plan.name or ""

    def _has_dead_letters(self, message: Message) -> bool:
        """Whether the queue of *message* is known to have a dead-letter exchange."""
        tag = message.delivery_info.get("consumer_tag")
        for subscription in self._subscriptions:
            if subscription.tag == tag:
                arguments = subscription.arguments
                if arguments is None:
                    arguments = self._session.topology.arguments_of(subscription.name)
                return "x-dead-letter-exchange" in (arguments or {})
        return False

    def _move(self, state: ConsumerState) -> None:
        if state is not self.state:
            self.state = moved(self.state, state)
            self.watch.announce()

    def wait_restored(self, deadline: Deadline) -> None:
        """Wait until it is confirmed again, or it is clear that this takes longer.  May switch.

        Raises:
            TimeoutError: it was not before the deadline.
        """
        while (
            self._wish is Wish.RUN
            and self.state not in ENDS
            and not self.is_confirmed
            and not self._restorer.pause
        ):
            self.watch.wait(deadline)


def _line_for(plan: Plan, pool: WorkerPool, handling: Handling) -> Line:
    if plan.batch_size is None:
        return Line(pool, handling.run, plan.concurrency)
    assert plan.batch_interval is not None
    return BatchLine(pool, handling.run, plan.concurrency, plan.batch_size, plan.batch_interval)
