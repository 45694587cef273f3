"""Renewal of what a connection has logged in with, before it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakMethod

from gevent import Greenlet, Timeout, get_hub, getcurrent

from greenconn.credentials import Token
from greenconn.green.hub import weakly
from greenconn.green.retry import Backoff, RetryPolicy
from greenconn.green.supervisor import spawn

#: The part of its life after which a token is renewed.
RENEW_AT: Final = 0.8
#: Seconds between two renewals at least, whatever the tokens say.
LEAST_PAUSE: Final = 1.0
#: For a login that is not to be had, or that the broker does not take.
RENEWING: Final = RetryPolicy(first=1.0, longest=30.0)


class Renewal:
    """Renews the login of one connection as long as that lives.

    A :class:`~greenconn.credentials.Token` is renewed when four fifths of its life are over, and any
    login after *interval*.  What fails is tried again with back-off; the first error of each class is
    logged with its traceback.

    Arguments:
        renew: a bound method that asks for the login, tells the broker if it is another one, and
            returns its secret.  May switch.  It is referred to weakly.
        logger, where: what failures are logged to, and what names the broker there.
        interval: seconds; None renews only what says when it ends.
    """

    def __init__(
        self,
        renew: Callable[[], object],
        logger: logging.Logger,
        where: str,
        interval: float | None = None,
    ) -> None:
        self._renew = WeakMethod(renew)
        self._logger = logger
        self._where = where
        self._interval = interval
        self._timer: Any = None
        self._greenlet: Greenlet[..., Any] | None = None
        self._backoff: Backoff | None = None
        #: Classes of the errors since the last success.
        self._reported: set[type[BaseException]] = set()
        self._is_over = False

    def keep(self, secret: object) -> None:
        """Renew *secret*, and what comes after it, in time.  Never switches."""
        pauses = []
        if isinstance(secret, Token) and secret.expires_in is not None:
            pauses.append(max(RENEW_AT * secret.expires_in, LEAST_PAUSE))
        if self._interval is not None:
            pauses.append(self._interval)
        if pauses:
            self.begin_in(min(pauses))

    def begin_in(self, seconds: float) -> None:
        """Renew the login then, and after that in time.  Never switches."""
        if not self._is_over:
            self._drop_timer()
            self._timer = get_hub().loop.timer(seconds, ref=False)
            self._timer.start(weakly(self._on_time), update=True)

    def stop(self) -> None:
        """Stop, as the connection has ended.  Never switches."""
        self.forget()
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not getcurrent():
            greenlet.kill(block=False)

    def forget(self) -> None:
        """After a fork, in the child: the timer is the parent's."""
        self._is_over = True
        self._drop_timer()

    def _drop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _on_time(self) -> None:
        # In the hub.
        self._drop_timer()
        self._greenlet = spawn("renew-login", self._run)

    def _run(self) -> None:
        renew = self._renew()
        if renew is None:
            return
        try:
            secret = renew()
        except (Exception, Timeout) as exc:  # a timeout here is the program's own
            if self._is_over:
                return  # a new connection asks for a login of its own
            is_new = type(exc) not in self._reported
            self._reported.add(type(exc))
            if self._backoff is None:
                self._backoff = Backoff(RENEWING)
            pause = max(next(self._backoff), LEAST_PAUSE)
            self._logger.warning(
                "%s: the credentials could not be renewed, next attempt in %.1f s: %s: %s",
                self._where,
                pause,
                type(exc).__name__,
                exc,
                exc_info=exc if is_new else None,
                extra={"connection": self._where},
            )
            self.begin_in(pause)
        else:
            self._backoff = None
            self._reported.clear()
            self.keep(secret)
