"""The secret of a connection's login: told to the broker anew before it ends.

``connection.update-secret`` is RabbitMQ's extension (class 10, methods 70 and 71; the amqp package does
not know it).  The broker answers in order, so callers stand in line; one that is killed keeps its
place.  A secret that the broker refuses costs the connection (530).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from amqp.serialization import dumps
from gevent import Greenlet, get_hub, getcurrent

from greenconn.credentials import Token
from greenconn.green.deadline import Deadline
from greenconn.green.retry import Backoff, RetryPolicy
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.green.weak import weakly

if TYPE_CHECKING:
    from greenconn.transport.amqp.connection import AmqpLink

__all__ = ["UPDATE_SECRET_OK", "Secret"]

logger = logging.getLogger("greenconn.transport.amqp")

UPDATE_SECRET: Final = (10, 70)
UPDATE_SECRET_OK: Final = 10 << 16 | 71

#: The part of its life after which a token is renewed.
RIPE: Final = 0.8
#: Seconds between two renewals at least, whatever the tokens say.
LEAST_PAUSE: Final = 1.0
#: For a new one that is not to be had, or is not taken.
RENEWING: Final = RetryPolicy(first=1.0, longest=30.0)
REASON: Final = "the token is renewed before it ends"


class Secret:
    """The login's secret in one life of a connection.

    Arguments:
        link: that life.
    """

    __slots__ = (
        "__weakref__",
        "_backoff",
        "_errand",
        "_is_over",
        "_link",
        "_renew",
        "_timer",
        "_waiters",
    )

    def __init__(self, link: AmqpLink) -> None:
        #: It refers to this object: its memory shall not wait for the collector.
        self._link = ref(link)
        self._waiters: deque[Slot[None]] = deque()
        self._renew: Callable[[], Any] | None = None
        self._timer: Any = None
        self._errand: Greenlet[..., Any] | None = None
        self._backoff: Backoff | None = None
        self._is_over = False

    def update(self, secret: str, reason: str, deadline: Deadline) -> None:
        """Tell the broker a new secret, and wait until it has taken it.  May switch.

        Arguments:
            reason: for the broker's log; 255 bytes at most.

        Raises:
            TimeoutError: no answer came before the deadline.
            ConnectionError: the broker refused it, or the connection ended.
        """
        link = self._link()
        assert link is not None, "it is the caller"
        arguments = dumps("Ss", (secret, reason))
        if link.writer.gate:
            link.gate.pass_through(deadline)
        link.check_open()
        # In line before it is written, for that may be the end of the connection.
        slot: Slot[None] = Slot()
        self._waiters.append(slot)
        link.write_method(UPDATE_SECRET, arguments)
        link.budget.begin_wait()
        try:
            slot.wait(deadline)
        except TimeoutError:
            if not slot.has_left:
                raise
            raise TimeoutError(f"{link.where} did not take the new secret in time") from None
        finally:
            link.budget.end_wait()

    def keep(self, secret: object, renew: Callable[[], Any]) -> None:
        """Renew *secret* before it ends, and what comes after it, as long as the connection lives.

        Arguments:
            secret: what the login was done with.
            renew: gives a new one; may switch.
        """
        self._renew = renew
        self._plan(secret)

    # In the reader or the hub: nothing here may switch or run user code.

    def on_ok(self) -> None:
        """The broker has taken the oldest of those that wait."""
        if self._waiters:
            self._waiters.popleft().offer(None)

    def stop(self, exc: BaseException) -> None:
        """The connection has ended."""
        self._is_over = True
        self._drop_timer()
        waiters, self._waiters = self._waiters, deque()
        for slot in waiters:
            slot.fail(exc)
        errand, self._errand = self._errand, None
        if errand is not None and errand is not getcurrent():
            errand.kill(block=False)

    def forget(self) -> None:
        """After a fork, in the child: the timer is the parent's."""
        self._is_over = True
        self._drop_timer()

    def _drop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    def _plan(self, secret: object) -> None:
        if isinstance(secret, Token) and secret.expires_in is not None:
            self._begin_in(max(RIPE * secret.expires_in, LEAST_PAUSE))

    def _begin_in(self, seconds: float) -> None:
        if not self._is_over:
            self._timer = get_hub().loop.timer(seconds, ref=False)
            self._timer.start(weakly(self._on_time), update=True)

    def _on_time(self) -> None:
        self._drop_timer()
        self._errand = spawn("renew-secret", self._renew_now)

    # In a greenlet of its own

    def _renew_now(self) -> None:
        link = self._link()
        assert self._renew is not None
        if link is None:
            return
        try:
            secret = self._renew()
            link.check_open()
            self.update(secret, REASON, Deadline(link.options.reply_timeout))
        except Exception as exc:
            if self._is_over:
                return  # a new connection asks for a secret of its own
            if self._backoff is None:
                self._backoff = Backoff(RENEWING)
            pause = max(next(self._backoff), LEAST_PAUSE)
            logger.warning(
                "%s: the login could not be renewed, it is tried again in %.1f s: %s: %s",
                link.where,
                pause,
                type(exc).__name__,
                exc,
            )
            self._begin_in(pause)
        else:
            self._backoff = None
            logger.debug("%s: the login was renewed", link.where)
            self._plan(secret)
