"""Renewal of a connection's secret at the broker before it expires.

``connection.update-secret`` is RabbitMQ's extension (class 10, methods 70 and 71; the amqp package does
not know it).  The broker replies in order, so that each reply is the oldest waiter's; one that is killed
keeps its place.  The broker ends the connection over a secret that it refuses (530).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from amqp.serialization import dumps

from greenconn.green.deadline import Deadline
from greenconn.green.retry import Renewal
from greenconn.green.slot import Slot

if TYPE_CHECKING:
    from greenconn.transport.amqp.link import AmqpLink

logger = logging.getLogger("greenconn.transport.amqp")

UPDATE_SECRET: Final = (10, 70)

REASON: Final = "the token is renewed before it ends"


class Secret:
    """The login's secret in one life of a connection.

    Arguments:
        link: that life.
    """

    def __init__(self, link: AmqpLink) -> None:
        #: It refers to this object: its memory must not wait for the collector.
        self._link = ref(link)
        self._waiters: deque[Slot[None]] = deque()
        self._ask: Callable[[], Any] | None = None
        self._renewal = Renewal(self._renew, logger, link.where)

    def update(self, secret: str, reason: str, deadline: Deadline) -> None:
        """Update the secret at the broker, and wait until it has accepted it.  May switch.

        Arguments:
            reason: for the broker's log; 255 bytes at most.

        Raises:
            TimeoutError: no reply came before the deadline.
            ConnectionError: the broker refused it, or the connection ended.
        """
        link = self._link()
        assert link is not None, "it is the caller"
        arguments = dumps("Ss", (secret, reason))
        if link.writer.must_wait:
            link.flow_control.wait(deadline)
        link.check_open()
        # Appended before it is written, for that may be the end of the connection.
        slot: Slot[None] = Slot()
        self._waiters.append(slot)
        link.write_method(UPDATE_SECRET, arguments)
        link.budget.begin_wait()
        try:
            slot.wait(deadline)
        except TimeoutError:
            if not slot.has_left:
                raise
            raise TimeoutError(f"{link.where} did not accept the new secret in time") from None
        finally:
            link.budget.end_wait()

    def keep(self, secret: object, renew: Callable[[], Any]) -> None:
        """Renew *secret*, and each one after it, before it expires, as long as the connection lives.

        Arguments:
            secret: that of the login.
            renew: returns a new one; may switch.
        """
        self._ask = renew
        self._renewal.keep(secret)

    def _renew(self) -> object:
        link = self._link()
        if link is None or self._ask is None:
            return None
        secret = self._ask()
        if secret is None:
            raise TypeError("the password of a login must be text, got None")
        link.check_open()
        self.update(secret, REASON, Deadline(link.options.reply_timeout))
        logger.debug(
            "%s: the credentials were renewed", link.where, extra={"connection": link.where}
        )
        return secret

    # In the reader or the hub: nothing here may switch or run user code.

    def on_ok(self) -> None:
        """Note that the broker has accepted the oldest secret that waits."""
        if self._waiters:
            self._waiters.popleft().offer(None)

    def stop(self, exc: BaseException) -> None:
        """Stop, as the connection has ended."""
        self._renewal.stop()
        waiters, self._waiters = self._waiters, deque()
        for slot in waiters:
            slot.fail(exc)

    def forget(self) -> None:
        """After a fork, in the child: the timer is the parent's."""
        self._renewal.forget()
