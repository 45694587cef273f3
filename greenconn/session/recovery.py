"""Bringing a lost connection back in the background."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from gevent import Greenlet
from greenlet import getcurrent

from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.supervisor import spawn
from greenconn.session.attempt import Outcome
from greenconn.session.life import Life
from greenconn.session.members import Members

__all__ = ["Recovery"]

logger = logging.getLogger("greenconn.session")


class _SessionLike(Protocol):
    @property
    def life(self) -> Life: ...

    def attempt(self) -> Outcome: ...

    def is_final(self, exc: BaseException) -> bool: ...

    def notice_loss(self) -> None: ...


class Recovery:
    """A greenlet that opens links and restores members on them, until none is due.

    Arguments:
        session: opens the links, with its own pace.
        members: who is restored.
        finish: called at the end with the error that ended it, or None, and the seconds it took.
    """

    def __init__(
        self,
        session: _SessionLike,
        members: Members,
        finish: Callable[[BaseException | None, float], None],
    ) -> None:
        self._session = session
        self._members = members
        self._finish = finish
        self._greenlet: Greenlet[..., Any] | None = None

    def begin(self) -> None:
        """Begin unless it has begun.  Never switches."""
        if self._greenlet is None:
            self._greenlet = spawn("recovery", self._run)

    def stop(self) -> None:
        """End without calling *finish*.  Never switches."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not getcurrent():
            greenlet.kill(block=False)

    def _run(self) -> None:
        began = monotonic()
        error: BaseException | None = None
        try:
            error = self._restore_all()
        except Exception as exc:
            logger.exception("recovery failed")
            error = exc
        except BaseException:
            # Somebody killed it: whoever waits for it must not wait for ever.
            error = RecoverableConnectionError("recovery was interrupted")
            raise
        finally:
            if self._greenlet is getcurrent():
                self._greenlet = None
                self._finish(error, monotonic() - began)

    def _restore_all(self) -> BaseException | None:
        """Open links and restore members until none is due; the error if that is of no use."""
        session, members = self._session, self._members
        while members.are_due:
            if session.life.is_open:
                members.restore(session.life)
                session.notice_loss()
                continue
            outcome = session.attempt()
            if outcome.error is not None and session.is_final(outcome.error):
                return outcome.error
        return None
