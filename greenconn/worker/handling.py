"""Handling of a message: decode it, call the handler, ack it; retry or reject it when that fails.

A message is settled once, by the handler itself or here.  After a handler that returned it is acked.
After one that failed it is handled again after the delays of ``retry``, for which the broker holds it
where it can; then ``on_error`` decides: it becomes a dead letter, is rejected, requeued, discarded, or
passed to a function.  A handler that raises ``RetryLater``, ``Discard`` or ``DeadLetter`` has decided
that itself.  A body that cannot be decoded, or does not fit the handler's schema, never reaches the
handler.

A message whose channel was closed cannot be settled, and the broker redelivers it.  So an ack that
fails is logged and ends nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from contextlib import suppress
from contextvars import Context
from sys import intern
from typing import TYPE_CHECKING, Any, Final

from gevent import Timeout, sleep

from greenconn.checks import check_has_run
from greenconn.clocks import CLOCK
from greenconn.delays import kept_delay
from greenconn.encoding import safe_repr
from greenconn.entity.queue import DEAD
from greenconn.exceptions import BodyTooLarge, MessageStateError, error_summary, error_text
from greenconn.green.retry import Backoff, RetryPolicy
from greenconn.green.supervisor import HANDLERS, name_of, spawn
from greenconn.limits import CLAIM, WAITED
from greenconn.listeners import (
    LISTENERS,
    DeadLetterEvent,
    DeliverEvent,
    Observation,
    Observers,
    RetryEvent,
    notify,
    url_of,
)
from greenconn.log import LONGEST_ID, message_fields
from greenconn.worker.dispatch import Interrupted, MessageBatch, NotBegun, keeps_key, let_next_begin
from greenconn.worker.failures import (
    ATTEMPTS,
    DeadLetter,
    Discard,
    FailedMessages,
    RetryLater,
    attempts_of,
    note_failure,
    own_traceback,
    restore_route,
)

if TYPE_CHECKING:
    from greenconn.green.deadline import Deadline
    from greenconn.limits.admission import Admission
    from greenconn.message import Message
    from greenconn.worker.lifecycle import ConsumerLifecycle

logger = logging.getLogger("greenconn.worker")

#: Seconds of a delay, before jitter, from which on the broker holds a message by default.
SHORT_DELAY: Final = 1.0
#: Seconds until a message whose dead letter could not be stored is handled again.
UNSTORED_DELAY: Final = 5.0
#: Attempts after which a delay of the next is taken as no longer than that.
LONGEST_BACKOFF: Final = 1000
#: Seconds of the first pause and of the longest.
FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 5.0
#: Seconds after which a message that comes back is one that came for the first time.
FORGOTTEN_AFTER: Final = 60.0
#: Messages that are remembered.
MOST_RETURNED: Final = 1000
#: Headers of messages that came before.
_OF_RETURNED: Final = (ATTEMPTS, "x-death", "x-delivery-count")
#: Failures of a handler; whatever else it raises is meant for the greenlet.
FAILURES: Final = (Exception, Timeout, Interrupted)


class HandlerTimeout(Timeout):
    """The failure of a handler that has run for longer than ``handler_timeout``.

    Arguments:
        limit: seconds.
    """

    def __init__(self, limit: float) -> None:
        super().__init__(None)  # gevent's own has expired
        self.limit = limit

    def __str__(self) -> str:
        return f"handler_timeout of {self.limit} s passed"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.limit,)


class Handling:
    """The handler of one consumer, and the acks of its messages.

    Whatever the handler does, each message that needs an ack is settled exactly once, or its channel is
    gone and the broker delivers it again.

    Arguments:
        consumer: its life; the handler is called for its dispatcher.

    Attributes:
        handled, failed, discarded, retried, rejected, requeued, dropped: numbers of messages; one that
            fails twice counts twice; dropped are those that need no ack and were never handled.
        deferred: number of deliveries that went back for a limit.
        skipped: number of messages that a later one of their burst replaced.
    """

    __slots__ = (
        "_accept",
        "_admission",
        "_backoffs",
        "_consumer",
        "_context",
        "_convert",
        "_failed_messages",
        "_full_name",
        "_handler",
        "_has_logged_kill",
        "_is_counted",
        "_is_limited",
        "_is_resent",
        "_keeps_order",
        "_no_ack",
        "_on_error",
        "_options",
        "_retry_policy",
        "_returned",
        "_timeout",
        "deferred",
        "discarded",
        "dropped",
        "failed",
        "handled",
        "rejected",
        "requeued",
        "retried",
        "skipped",
    )

    def __init__(self, consumer: ConsumerLifecycle) -> None:
        options = consumer.options
        self._consumer = consumer
        self._options = options
        self._handler = options.handler
        #: Of the handler, with its module; many consumers may have the same one.
        self._full_name = intern(name_of(options.handler))
        self._accept: Container[str] | None = options.accept  # type: ignore[assignment]  # a set by now
        self._convert = options.convert
        self._on_error = options.on_error
        self._retry_policy: RetryPolicy | None = options.policy
        self._timeout = options.handler_timeout
        self._no_ack = options.no_ack
        self._is_counted = options.is_unbounded
        # Each message has a copy: workers are reused, and what one handler sets is not the next one's.
        self._context: Context = CLOCK.context()
        #: Sends messages that failed to where they wait; None: none is sent.
        self._failed_messages = None if options.no_ack else FailedMessages(consumer)
        #: Whether messages may have been sent again by :class:`FailedMessages`.
        self._is_resent = options.holds != "process"
        #: Whether messages wait for others of their key, also for those that are retried.
        self._keeps_order = options.keeps_order
        #: Of what failed before: the delays that are left.
        self._backoffs: dict[Any, Backoff] = {}
        #: None: none has come back.
        self._returned: ReturnedMessages | None = None
        self._has_logged_kill = False
        self.handled = self.failed = self.discarded = self.retried = 0
        self.rejected = self.requeued = self.dropped = 0
        self.deferred = self.skipped = 0
        self._is_limited = options.limit is not None or options.rate is not None
        #: None: no message needed it yet.
        self._admission: Admission | None = None
        if self._is_limited:
            self._admit()

    @property
    def name(self) -> str:
        """Name of the handler."""
        return _name_of(self._handler)

    def run(self, message: Any) -> None:
        """Handle one message.  May switch.

        Raises:
            BaseException: what ends the greenlet; the message was requeued.
        """
        try:
            if self._is_counted:
                release(message)
            if self._returned is not None and self._waits(message, message):
                return
            if self._accept is not None:
                message.accept = self._accept
            try:
                body = message.decode()
                if self._convert is not None:
                    body = message._decoded_cache = self._convert(body)
            except FAILURES as exc:
                self._refuse_undecodable(message, exc)
                if self._keeps_order:
                    self._end_turn(message)
                return
            if self._is_resent and message._came_with(ATTEMPTS):
                restore_route(message)
            try:
                is_conditional = self._is_limited or message._came_with(CLAIM)
                if is_conditional and not self._may_begin(message, body):
                    return
                self._call(body, message)
            except NotBegun:
                return  # the dispatcher has taken it out
            except FAILURES as exc:
                self._failed(message, exc)
                if self._keeps_order:
                    self._end_turn(message)
                return
            self.handled += 1
            if self._backoffs:
                self._backoffs.pop(message, None)
            # The state of one that was not settled is seen without a call.
            if not self._no_ack and (message._state == "RECEIVED" or not message.acknowledged):
                self._ack(message)
            elif message._state == "REQUEUED":
                self._note_return(message)
                if self._keeps_order:
                    self._end_turn(message)
        except BaseException as exc:
            self._note_exit(exc, message)
            if self._keeps_order and not self._consumer.is_ending and self.is_unsettled(message):
                self._consumer.dispatcher.retry_later(message, FIRST_PAUSE)  # it keeps its place
                raise
            self._note_return(message)
            self.requeue(message)
            raise
        finally:
            if self._admission is not None:
                self._leave(message)

    # Limits

    def _admit(self) -> Admission:
        """Return what is asked before a handler is called."""
        if self._admission is None:
            from greenconn.limits.admission import Admission

            options = self._options
            self._admission = Admission(options.limit, options.rate, self._consumer.connection)
        return self._admission

    def _may_begin(self, message: Message, body: Any) -> bool:
        """Return whether *message* is to be handled now, and have it redelivered else.  May switch.

        Raises:
            Exception: what a function of the limit raised, or of the rate.
        """
        from greenconn.limits.admission import Verdict

        if WAITED in message.headers:
            restore_route(message)
        queue = self._consumer.queue_of(message)
        verdict, wait = self._admit().enter(message, queue, body)
        if not self._no_ack and not self.is_unsettled(message):
            return False  # its channel was lost meanwhile
        if verdict is Verdict.BEGIN:
            return True
        if verdict is Verdict.SKIP:
            logger.debug(
                "message %s of queue %r is not handled: a later one of its burst is there",
                message.delivery_tag,
                queue,
                extra=self._fields(message),
            )
            self.skipped += 1
            if not self._no_ack:
                self._ack(message)
        elif self._consumer.is_ending and not self._no_ack:
            self.requeue(message, has_begun=False)
        elif verdict is Verdict.WAIT:
            self._wait_here(message, wait)
        else:
            self.deferred += 1
            self._put_off(message, queue, wait)
        return False

    def _put_off(self, message: Message, queue: str, delay: float) -> None:
        """Have *message* redelivered in *delay* seconds, by the broker if it can.  May switch."""
        holder = self._failed_messages
        if holder is not None and holder.can_delay(message):
            delay = kept_delay(message.channel, delay)
            if holder.put_off(message, queue, delay):
                self._carry(message, queue, delay)
                self._ack(message)
                return
            if not self.is_unsettled(message):
                return
        self._admit().put_off(message)
        self._wait_here(message, delay)

    def _wait_here(self, message: Message, delay: float) -> None:
        message._decoded_cache = None  # it is converted again
        self._consumer.dispatcher.retry_later(message, delay)

    def _carry(self, message: Message, queue: str, delay: float) -> None:
        """Have the copy of *message*, which comes in *delay* seconds, keep its unique key."""
        if message._came_with(CLAIM):
            self._admit().carry(message, queue, delay)

    def _leave(self, message: Message) -> None:
        """Give back what *message* has taken, unless it waits here."""
        admission = self._admission
        if admission is not None and not admission.waits(message):
            admission.leave(message, is_done=self._is_done(message))

    def _is_done(self, message: Message) -> bool:
        """Return whether *message* was settled and is not redelivered."""
        return self._no_ack or (message.acknowledged and message._state != "REQUEUED")

    def flush_limits(self, deadline: Deadline) -> None:
        """Wait until what the handlers have taken of limits is free again.  May switch."""
        if self._admission is not None:
            self._admission.flush(deadline)

    # Redelivered messages

    def _note_return(self, message: Message) -> None:
        """Note that *message* is put back or given up, and may be delivered again.  Never switches."""
        if self._no_ack:
            return
        if self._returned is None:
            self._returned = ReturnedMessages()
        self._returned.note(message)

    def _end_turn(self, message: Message) -> None:
        """Let the next message of its key begin, unless *message* is handled again here.  May switch."""
        if not keeps_key(message) or self._consumer.dispatcher.will_retry(message):
            return
        try:
            if self._returned is not None and not self._consumer.is_ending:
                sleep(self._returned.pause_of(message))  # it may come back again and again
        finally:
            let_next_begin(message)

    def _waits(self, message: Message, load: Any) -> bool:
        """Return whether *message* has come back too soon, and have *load* wait.  May switch."""
        pause = 0.0 if self._returned is None else self._returned.left(message)
        if not pause or self._keeps_order:
            return False  # in order: later ones of its key would begin before it
        if self._consumer.is_ending:
            self.requeue(message)
        else:
            self._consumer.dispatcher.retry_later(load, pause)
        return True

    def _note_exit(self, exc: BaseException, message: Message) -> None:
        if isinstance(exc, (SystemExit, KeyboardInterrupt)):
            self._consumer.shut_down()
        elif not self._consumer.is_ending and not self._has_logged_kill:
            # It may be redelivered at once, again and again.
            self._has_logged_kill = True
            spawn(
                "log",
                logger.warning,
                "handler %s of queue %r was killed by the program (%s) on delivery %s; the message is "
                "%s (logged once)",
                _name_of(self._handler),
                self._consumer.queue_of(message),
                error_text(exc, repr),
                message.delivery_tag,
                "lost (no_ack)" if self._no_ack else "requeued",
                extra=self._fields(message),
            )

    def _call(self, body: Any, message: Message | list[Message]) -> None:
        if HANDLERS.handler is not self._handler:
            HANDLERS.change(self._handler, self._full_name)
        handler = self._handler
        if LISTENERS.handling is not None:
            handler = self._call_observed
        if self._timeout is None:
            result = self._context.copy().run(handler, body, message)
        else:
            timeout = CLOCK.timeout(self._timeout)
            try:
                with timeout:
                    result = self._context.copy().run(handler, body, message)
            except Timeout as exc:
                if exc is not timeout:
                    raise  # one of the program's own
                raise HandlerTimeout(self._timeout).with_traceback(exc.__traceback__) from None
        if result is not None:
            check_has_run("the handler", result)

    def _call_observed(self, body: Any, message: Message | list[Message]) -> Any:
        if (observers := LISTENERS.handling) is None:
            return self._handler(body, message)
        messages = message if isinstance(message, list) else [message]
        return self._observe(observers, messages).run(self._handler, body, message)

    def _observe(
        self, observers: Observers[DeliverEvent], messages: list[Message]
    ) -> Observation[DeliverEvent]:
        """Notify the listeners that *messages* are about to be handled.  Never switches."""
        first = messages[0]
        url, queue = url_of(first.channel), self._consumer.queue_of(first)
        return observers.begin(DeliverEvent(url, queue, tuple(messages), self._full_name))

    # Failing

    def _failed(self, message: Message, exc: BaseException) -> None:
        later = exc if isinstance(exc, RetryLater) and not self._no_ack else None
        if not self._no_ack and not self.is_unsettled(message):
            self.failed += 1
            self._backoffs.pop(message, None)
            self._note_return(message)
            self._log_failure(message, exc, None, "the message is already settled")
            return
        if isinstance(exc, Discard):
            self._discard([message], exc)
            return
        if later is not None and not later.counts:
            self._send_back(message, later, self._failures_of(message))
            return
        self.failed += 1
        attempts, delay = self._next_retry(message, exc)
        if later is not None and (delay is not None or self._retry_policy is None):
            self._send_back(message, later, attempts)
        elif delay is None:
            end, target = self._last_step(message, exc)
            self._log_failure(message, exc, attempts, end)
            self._give_up(message, exc, attempts, target)
        elif self._consumer.is_ending:
            self._log_failure(message, exc, attempts, "the message is requeued")
            self.requeue(message)
        else:
            holder = self._holder_of(message, delay)
            if holder is not None:
                delay = kept_delay(message.channel, delay)
            self._log_failure(message, exc, attempts, f"retry in {delay:.1f} s", is_final=False)
            self._notify_retry(message, exc, attempts, delay)
            if holder is None or not self._is_held(holder, message, attempts, delay):
                self._retry(message, delay)

    def _discard(self, messages: list[Message], exc: Discard) -> None:
        """Acknowledge *messages* of a handler that has no use for them."""
        reason = error_text(exc) or "no reason given"
        self._log_outcome(messages, f"discarded {_described(messages)}: {reason}")
        self.discarded += len(messages)
        for message in messages:
            self._backoffs.pop(message, None)
            if not self._no_ack:
                self._ack(message)

    def _send_back(self, message: Message, exc: RetryLater, attempts: int) -> None:
        """Have *message* handled again when its handler has said.  May switch.

        Arguments:
            attempts: how often the handler has failed.
        """
        holder, delay = self._failed_messages, exc.seconds_left()
        if holder is not None and (self._keeps_order or not holder.can_delay(message)):
            holder = None  # in order, the message keeps its place in the queue
        if holder is not None:
            delay = kept_delay(message.channel, delay)
        self._log_outcome(
            [message], f"asked for {_described([message])} again in {delay:.1f} s", exc
        )
        self._notify_retry(message, exc, attempts, delay)
        if holder is not None and self._is_held(holder, message, attempts, delay):
            return
        if self._consumer.is_ending:
            self.requeue(message)
        else:
            self._retry(message, delay, has_failed=exc.counts)

    def _log_outcome(
        self, messages: list[Message], outcome: str, exc: BaseException | None = None
    ) -> None:
        """Log what the handler has done with its messages.

        Arguments:
            exc: an error whose cause is the reason.
        """
        cause = None if exc is None else exc.__cause__
        logger.info(
            "handler %s of queue %r %s%s",
            _name_of(self._handler),
            self._consumer.queue_of(messages[0]),
            outcome,
            "" if cause is None else f": {error_summary(cause)}",
            extra=self._fields(messages[0]),
        )

    def _notify_retry(
        self, message: Message, exc: BaseException, attempts: int, delay: float
    ) -> None:
        if (calls := LISTENERS.retry) is not None:
            url, queue = url_of(message.channel), self._consumer.queue_of(message)
            notify(calls, RetryEvent(url, queue, message, exc, attempts, delay))

    def _holder_of(self, message: Message, delay: float) -> FailedMessages | None:
        """Return what may have the broker hold *message* for *delay* seconds; None: it waits here."""
        holder = self._failed_messages
        if (
            holder is None
            or self._options.holds == "process"
            or (self._options.holds is None and self._backoffs[message].unjittered < SHORT_DELAY)
            or not delay
            or not holder.can_delay(message)
        ):
            return None
        return holder

    def _is_held(
        self, holder: FailedMessages, message: Message, attempts: int, delay: float
    ) -> bool:
        """Have the broker hold *message* until it is handled again; False: it does not.  May switch."""
        queue = self._consumer.queue_of(message)
        if not holder.delay(message, queue, attempts, delay):
            return False
        self._carry(message, queue, delay)
        self._backoffs.pop(message, None)
        self.retried += 1
        self._ack(message)
        return True

    def is_unsettled(self, message: Message) -> bool:
        """Return whether it is unacked and can be settled; with its channel gone it is redelivered."""
        return not self._no_ack and not message.acknowledged and message.channel.is_open

    def _next_retry(self, message: Message, exc: BaseException) -> tuple[int, float | None]:
        """Return how often *message* has failed, and the seconds until it is handled again.

        None: it is not handled again.
        """
        former, backoff = self._failures_of(message), self._backoffs.pop(message, None)
        if self._retry_policy is None or isinstance(exc, (Interrupted, DeadLetter)):
            return former + 1, None
        if backoff is None:
            backoff = Backoff(self._retry_policy)
            for _ in range(min(former, LONGEST_BACKOFF)):
                next(backoff, None)
            backoff.failures = former
        delay = next(backoff, None)
        if delay is not None:
            self._backoffs[message] = backoff
        return former + 1, delay

    def _failures_of(self, message: Message) -> int:
        """Return how often the handler of *message* has failed before."""
        backoff = self._backoffs.get(message)
        return attempts_of(message) if backoff is None else backoff.failures

    def _retry(self, message: Message, delay: float, *, has_failed: bool = True) -> None:
        """Have *message* handled again in *delay* seconds, unless the broker redelivers it."""
        if not self._no_ack and not self.is_unsettled(message):
            # Its channel was lost while the failure was logged, or while a copy was on its way.
            self._backoffs.pop(message, None)
            return
        self.retried += 1
        if has_failed:
            note_failure(message)
        message._decoded_cache = None  # the handler may have changed it
        self._consumer.dispatcher.retry_later(message, delay)

    def _log_failure(
        self,
        message: Message,
        exc: BaseException,
        attempt: int | None,
        outcome: str,
        *,
        is_final: bool = True,
    ) -> None:
        logger.log(
            logging.ERROR if is_final else logging.WARNING,
            "handler %s of queue %r failed%s on delivery %s; %s",
            _name_of(self._handler),
            self._consumer.queue_of(message),
            "" if attempt is None else f" in attempt {attempt}",
            message.delivery_tag,
            outcome,
            exc_info=(type(exc), exc, own_traceback(exc)),
            extra=self._fields(message, attempt),
        )

    def _last_step(
        self, message: Message, exc: BaseException, subject: str = "the message is"
    ) -> tuple[str, str | None]:
        """Return what is done with *message* now that no retry is left, for the log.  May switch.

        Returns:
            A text, and the queue to which it is moved; None: to none.
        """
        if callable(self._on_error) and not self._no_ack:
            return f"{_name_of(self._on_error)} decides", None
        if self._on_error_of(exc) == "requeue":
            return f"{subject} requeued", None
        end, target = self._end_of(message, exc)
        return f"{subject} {end}", target

    def _on_error_of(self, exc: BaseException) -> Any:
        """Return ``on_error``, unless the handler itself has asked for a dead letter."""
        is_kept = isinstance(exc, DeadLetter) and self._on_error in ("requeue", "discard")
        return "dead_letter" if is_kept else self._on_error

    def _end_of(self, message: Message, exc: BaseException) -> tuple[str, str | None]:
        """Return where a message that is given up goes: else as :meth:`_last_step`.  May switch."""
        if self._no_ack or self._failed_messages is None:
            return "lost (no_ack)", None
        if self._on_error_of(exc) == "discard":
            return "lost (on_error='discard')", None
        if self._on_error == "reject":
            return "rejected: it is lost if the queue has no dead-letter exchange", None
        queue = self._consumer.queue_of(message)
        target = self._options.dead_letters_of(queue)
        is_received = not isinstance(exc, BodyTooLarge)  # else only the broker has all of it
        if not is_received and self._consumer.is_of_stream(message):
            return "passed over, and stays in the stream", None
        if not (target and is_received) and self._consumer.has_dead_letters(message):
            return "moved to the dead-letter exchange of the queue", None
        if target is None and self._consumer.is_nameless(message):
            return "lost: the name of its queue was made up, and dead_letter is not set", None
        target = target or f"{queue}{DEAD}"
        return f"moved to queue {target!r}" if is_received else "kept where it is", target

    def _give_up(
        self,
        message: Message,
        exc: BaseException,
        attempts: int,
        target: str | None,
    ) -> None:
        """Do what ``on_error`` says, after all retries failed.

        Arguments:
            attempts: how often it has failed.
            target: as :meth:`_end_of` returns it.
        """
        self._note_return(message)
        if self._on_error_of(exc) == "requeue":
            self._settle(message, requeue=True)
        elif callable(self._on_error):
            self._decide(self._on_error, message, exc, attempts)
        else:
            self._reject(message, exc, attempts, target)

    def _refuse_undecodable(self, message: Message, exc: BaseException) -> None:
        self.failed += 1
        self._note_return(message)
        target, is_unread = None, _lacks_memory(exc)
        if is_unread:
            outcome = "the message is decoded again later"
        elif self._options.on_decode_error is None:
            end, target = self._end_of(message, exc)
            outcome = f"the message is {end}"
        else:
            outcome = f"{_name_of(self._options.on_decode_error)} decides"
        logger.error(
            "message %s of queue %r (%.100r) cannot be decoded: %s; %s",
            message.delivery_tag,
            self._consumer.queue_of(message),
            message.content_type,
            error_summary(exc),
            outcome,
            # Any publisher can cause this: log one line each, unless debugging.
            exc_info=exc if logger.isEnabledFor(logging.DEBUG) else None,
            extra=self._fields(message),
        )
        if (observers := LISTENERS.handling) is not None:
            self._observe(observers, [message]).end(exc)
        if is_unread:
            self._put_back_unread(message)
        elif self._options.on_decode_error is not None:
            self._decide(self._options.on_decode_error, message, exc, 0)
        else:
            self._reject(message, exc, 0, target)
        if message._came_with(CLAIM) and self._is_done(message):
            self._admit().end(message, self._consumer.queue_of(message))

    def _put_back_unread(self, message: Message) -> None:
        """Have *message* decoded again, here or elsewhere.  May switch."""
        # What was noted when it came is not decoded again here.
        is_kept = self._no_ack or (self._keeps_order and not message.errors)
        if is_kept and not self._consumer.is_ending:
            self._retry(message, LONGEST_PAUSE, has_failed=False)
        else:
            self.requeue(message)

    def _decide(
        self,
        function: Callable[[Any, Any], Any],
        message: Message,
        exc: BaseException,
        attempts: int,
    ) -> None:
        """Call *function*, and give *message* up unless that has settled it."""
        try:
            function(message, exc)
        except FAILURES:
            logger.exception(
                "%s of queue %r failed on delivery %s",
                _name_of(function),
                self._consumer.queue_of(message),
                message.delivery_tag,
                extra=self._fields(message),
            )
        if not self.is_unsettled(message):
            return
        end, target = self._end_of(message, exc)
        logger.warning(
            "%s of queue %r has not settled delivery %s; the message is %s",
            _name_of(function),
            self._consumer.queue_of(message),
            message.delivery_tag,
            end,
            extra=self._fields(message),
        )
        self._reject(message, exc, attempts, target)

    # Acks and rejects

    def _ack(self, message: Message) -> None:
        try:
            message.ack(flush=False)
        except MessageStateError:
            pass
        except Exception as exc:
            self._log_unacked(message, exc)

    def _reject(
        self, message: Message, exc: BaseException, attempts: int, target: str | None
    ) -> None:
        """Give *message* up: move it to the queue *target*, else reject or discard it.  May switch.

        Arguments:
            exc: why.
            attempts: how often its handler has failed.
            target: as :meth:`_end_of` returns it.
        """
        if not self.is_unsettled(message):
            return
        failed, queue = self._failed_messages, self._consumer.queue_of(message)
        if failed is not None and target is not None:
            if not failed.dead_letter(message, queue, target, attempts, exc):
                self._try_later(message)
                return
            self._ack(message)
            self.rejected += 1
        elif self._on_error_of(exc) == "discard":
            self._ack(message)
            self.rejected += 1
        elif not self._settle(message, requeue=False):
            return
        self._notify_dead_letter(message, exc, attempts, target)

    def _notify_dead_letter(
        self, message: Message, exc: BaseException, attempts: int, target: str | None
    ) -> None:
        if (calls := LISTENERS.dead_letter) is not None:
            url, queue = url_of(message.channel), self._consumer.queue_of(message)
            notify(calls, DeadLetterEvent(url, queue, message, exc, attempts, target))

    def _try_later(self, message: Message) -> None:
        """Handle *message* again after a while, as its dead letter cannot be stored now."""
        if self._consumer.is_ending:
            self._settle(message, requeue=True)
        else:
            self._retry(message, UNSTORED_DELAY)

    def _settle(self, message: Message, *, requeue: bool) -> bool:
        """Requeue or reject *message*, and return whether that was still to be done.  May switch."""
        if self._no_ack or message.acknowledged:
            return False
        try:
            if requeue:
                # Not a reject with requeue: to the position in a stream that is settled.
                message.requeue(flush=False)
            else:
                message.reject(flush=False)
        except MessageStateError:
            return False
        except Exception as exc:
            self._log_unacked(message, exc)
            return False
        if requeue:
            self.requeued += 1
        else:
            self.rejected += 1
        return True

    def _log_unacked(self, message: Message, exc: Exception) -> None:
        logger.info(
            "delivery %s of queue %r could not be acknowledged or rejected, so the broker "
            "redelivers it: %s",
            message.delivery_tag,
            self._consumer.queue_of(message),
            error_text(exc),
            extra=self._fields(message),
        )

    def _fields(self, message: Message, attempt: int | None = None) -> dict[str, Any]:
        """Return what a log record says of *message*."""
        return message_fields(
            message,
            queue=self._consumer.queue_of(message),
            consumer=self._options.name,
            connection=self._consumer.session.broker.label,
            attempt=attempt,
        )

    def forget(self, message: Message, *, has_begun: bool) -> None:
        """Drop *message*, which was lost with its channel.  In the reader.

        Arguments:
            has_begun: a handler has begun with it, so that this delivery of it counts.
        """
        if not self.drop(message) and not has_begun:
            with suppress(Exception):  # the channel is gone
                message.put_back()

    def drop(self, message: Message) -> bool:
        """Forget *message*, and return whether it waited for a retry.  Never switches."""
        has_failed = self._has_failed(message)
        let_next_begin(message)
        if self._admission is not None:
            self._admission.leave(message, is_done=False)
        if self._is_counted:
            release(message)
        return has_failed

    def requeue(self, message: Message, *, has_begun: bool = True) -> None:
        """Requeue a message, whatever happens to this greenlet.  May switch.

        Arguments:
            has_begun: a handler has begun with it, so that this delivery of it counts.
        """
        if self._is_counted:
            release(message)
        has_failed = self._has_failed(message)
        let_next_begin(message)
        if self._admission is not None:
            has_begun = has_begun and not self._admission.waits(message)
            self._admission.leave(message, is_done=self._no_ack)
        if self._no_ack:
            self.dropped += 1
            return
        if self._keeps_order and (has_begun or has_failed) and self._consumer.is_ending:
            self.requeued += 1
            return  # it goes back with all others, when its channel is closed
        settle = self._requeue if has_begun or has_failed else self._requeue_unbegun
        try:
            settle(message)
        except BaseException:
            # Killed again while the peer does not read: another greenlet waits for it.
            spawn("requeue", settle, message)
            raise

    def _has_failed(self, message: Message) -> bool:
        """Forget the retries of *message*, and return whether it waited for one.

        Such a message is back among those that no handler has begun with when its time has come.
        """
        return self._backoffs.pop(message, None) is not None

    def _requeue(self, message: Message) -> None:
        self._settle(message, requeue=True)

    def _requeue_unbegun(self, message: Message) -> None:
        if message.acknowledged:
            return
        try:
            message.put_back()
        except Exception as exc:
            self._log_unacked(message, exc)
            return
        self.requeued += 1


class BatchHandling(Handling):
    """A handler that takes several messages at once; they are acked or retried together."""

    __slots__ = ()

    def run(self, message: Any) -> None:
        """Handle one :class:`MessageBatch`.  May switch.

        Raises:
            BaseException: what ends the greenlet; the messages were requeued.
        """
        batch: MessageBatch = message
        first, entered = batch.messages[0], batch.messages
        try:
            bodies = self._decoded(batch)
            if not bodies:
                return
            try:
                self._call(bodies, list(batch.messages))
            except FAILURES as exc:
                self._batch_failed(batch, exc)
                return
            self.handled += len(bodies)
            for each in batch.messages:
                if not self._no_ack and not each.acknowledged:
                    self._ack(each)
                elif each._state == "REQUEUED":
                    self._note_return(each)
        except BaseException as exc:
            self._note_exit(exc, first)
            for each in batch.messages:
                self._note_return(each)
            self._requeue_all(batch.messages)
            raise
        finally:
            if self._admission is not None:
                for each in entered:
                    self._leave(each)

    def _wait_here(self, message: Message, delay: float) -> None:
        message._decoded_cache = None
        self._consumer.dispatcher.retry_later(MessageBatch([message]), delay)

    def _decoded(self, batch: MessageBatch) -> list[Any]:
        """Return the bodies; messages that cannot be decoded leave the batch."""
        bodies: list[Any] = []
        good: list[Any] = []
        for message in batch.messages:
            if self._is_counted:
                release(message)
            if self._returned is not None and self._waits(message, MessageBatch([message])):
                continue
            if self._accept is not None:
                message.accept = self._accept
            try:
                body = message.decode()
                if self._convert is not None:
                    body = message._decoded_cache = self._convert(body)
            except FAILURES as exc:
                self._refuse_undecodable(message, exc)
            else:
                if not message._came_with(CLAIM) or self._may_begin(message, body):
                    bodies.append(body)
                    good.append(message)
        batch.messages = good
        return bodies

    def _batch_failed(self, batch: MessageBatch, exc: BaseException) -> None:
        first, count = batch.messages[0], len(batch.messages)
        if not self._no_ack:
            # What the handler settled itself is left alone.
            for each in batch.messages:
                if each._state == "REQUEUED":
                    self._note_return(each)
            batch.messages = [each for each in batch.messages if self.is_unsettled(each)]
        if batch.messages and isinstance(exc, Discard):
            self._discard(batch.messages, exc)
            return
        if batch.messages and isinstance(exc, RetryLater) and not self._no_ack:
            self._send_batch_back(batch, exc)
            return
        self.failed += count
        if not batch.messages:
            self._log_failure(first, exc, None, "its messages are already settled")
            return
        delay = self._next_delay(batch, exc)
        if delay is None:
            steps = [self._last_step(each, exc, "its messages are") for each in batch.messages]
            ends = dict.fromkeys(end for end, _ in steps)
            self._log_failure(first, exc, batch.failures, ", ".join(ends))
            for message, (_, target) in zip(batch.messages, steps, strict=True):
                self._give_up(message, exc, batch.failures, target)
        elif self._consumer.is_ending:
            self._log_failure(first, exc, batch.failures, "its messages are requeued")
            self._requeue_all(batch.messages)
        else:
            self._log_failure(first, exc, batch.failures, f"retry in {delay:.1f} s", is_final=False)
            for message in batch.messages:
                self._notify_retry(message, exc, batch.failures, delay)
            self._retry_batch(batch, delay)

    def _send_batch_back(self, batch: MessageBatch, exc: RetryLater) -> None:
        """Have the messages handled again when their handler has said, in any batch.  May switch."""
        policy, messages = self._retry_policy, batch.messages
        delay, tries = exc.seconds_left(), None if policy is None else policy.tries
        self._log_outcome(messages, f"asked for {_described(messages)} again in {delay:.1f} s", exc)
        waiting: list[Any] = []
        for message in messages:
            attempts = max(attempts_of(message), batch.failures) + exc.counts
            self.failed += exc.counts
            if exc.counts and tries is not None and attempts >= tries:
                end, target = self._last_step(message, exc)
                self._log_failure(message, exc, attempts, end)
                self._give_up(message, exc, attempts, target)
                continue
            holder = self._failed_messages
            is_held = holder is not None and holder.can_delay(message)
            left = kept_delay(message.channel, delay) if is_held else delay
            self._notify_retry(message, exc, attempts, left)
            if holder is None or not is_held or not self._is_held(holder, message, attempts, left):
                waiting.append(message)
        if self._consumer.is_ending:
            self._requeue_all(waiting)
        elif waiting:
            load = MessageBatch(waiting)
            load.failures, load.delays = batch.failures + exc.counts, batch.delays
            self._retry_batch(load, delay, has_failed=exc.counts)

    def _next_delay(self, load: MessageBatch, exc: BaseException) -> float | None:
        load.failures += 1
        if self._retry_policy is None or isinstance(exc, (Interrupted, DeadLetter)):
            return None
        if load.delays is None:
            load.delays = Backoff(self._retry_policy)
        return next(load.delays, None)

    def _retry_batch(self, load: MessageBatch, delay: float, *, has_failed: bool = True) -> None:
        if not self._no_ack:
            # Channels may have been lost while the failure was logged.
            load.messages = [each for each in load.messages if self.is_unsettled(each)]
            if not load.messages:
                return
        self.retried += len(load.messages)
        for message in load.messages:
            if has_failed:
                note_failure(message)
            message._decoded_cache = None
        self._consumer.dispatcher.retry_later(load, delay)

    def _retry(self, message: Message, delay: float, *, has_failed: bool = True) -> None:
        self._retry_batch(MessageBatch([message]), delay, has_failed=has_failed)

    def _requeue_all(self, messages: list[Any]) -> None:
        for position, message in enumerate(messages):
            try:
                self.requeue(message)
            except BaseException:
                spawn("requeue", self._requeue_all, messages[position + 1 :])
                raise


class ReturnedMessages:
    """The messages of one consumer that may come back at once, each with its pause.

    Whatever puts a message back (``on_error="requeue"``, the handler itself, a kill of the handler, a
    dead-letter exchange that leads to the same queue), the broker may deliver it again at once, without
    end.  That would keep the process, the broker and the log busy.  So a message that comes back waits,
    each time twice as long.  Nothing here switches.
    """

    def __init__(self) -> None:
        #: Key of a message -> seconds of its pause, the end of the pause on the monotonic clock, and the
        #: message's body: any publisher can write the id of another message.
        self._pauses: dict[str | int, tuple[float, float, int]] = {}

    def note(self, message: Message) -> None:
        """Note that *message* goes back now, or elsewhere."""
        body = _hash_of_body(message)
        key, now = _key_of(message, body), CLOCK.monotonic()
        pause, end, known = self._pauses.pop(key, (0.0, 0.0, 0))
        is_again = pause and known == body and now < end + FORGOTTEN_AFTER
        pause = min(2 * pause, LONGEST_PAUSE) if is_again else FIRST_PAUSE
        if len(self._pauses) >= MOST_RETURNED:
            del self._pauses[next(iter(self._pauses))]  # the one that was noted first
        self._pauses[key] = pause, now + pause, body

    def pause_of(self, message: Message) -> float:
        """Return the seconds of the pause of a message that was noted."""
        return self._pauses.get(_key_of(message, _hash_of_body(message)), (0.0,))[0]

    def left(self, message: Message) -> float:
        """Return the seconds that *message* must wait until it may be handled."""
        # The bodies of two messages may be the same.
        if message.properties.get("message_id") is None and not (
            message.delivery_info.get("redelivered")
            or any(name in message.headers for name in _OF_RETURNED)
        ):
            return 0.0
        message_id = message.properties.get("message_id")
        found = self._pauses.get(
            _hash_of_body(message) if message_id is None else _short_id(message_id)
        )
        if found is None or found[2] != _hash_of_body(message):
            return 0.0
        return max(0.0, found[1] - CLOCK.monotonic())


def _key_of(message: Message, body: int) -> str | int:
    """Return what a message has in common with the same message when it comes back."""
    message_id = message.properties.get("message_id")
    return body if message_id is None else _short_id(message_id)


def _short_id(message_id: object) -> str:
    return str(message_id)[:LONGEST_ID]


def _hash_of_body(message: Message) -> int:
    """Return a number that messages with the same body have; a body that cannot be read has 0."""
    try:
        body = message.body
        if isinstance(body, (bytearray, memoryview)):
            body = bytes(body)
    except (BodyTooLarge, MemoryError):
        return 0
    return hash(body if isinstance(body, (bytes, str)) else safe_repr(body))


def _lacks_memory(exc: BaseException | None) -> bool:
    """Return whether a body could not be decoded because this process lacks memory."""
    for _ in range(10):  # an error may be its own cause
        if exc is None or isinstance(exc, MemoryError):
            break
        exc = exc.__cause__
    return isinstance(exc, MemoryError)


def release(message: Message) -> None:
    """Tell the channel that an unbounded consumer has taken *message*; once for each."""
    sink = message.__dict__.pop("sink", None)
    if sink is not None and sink.taken is not None:
        sink.taken(message)


def _described(messages: list[Message]) -> str:
    """Return what a log line calls *messages*."""
    tag = messages[0].delivery_tag
    return f"delivery {tag}" if len(messages) == 1 else f"{len(messages)} messages from {tag} on"


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__
