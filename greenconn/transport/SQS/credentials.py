"""Credentials, refreshed without blocking the hub."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import Final

import botocore.session
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError

from greenconn.green.deadline import Deadline
from greenconn.green.single_flight import SingleFlight
from greenconn.green.supervisor import spawn
from greenconn.green.threadpool import in_threadpool
from greenconn.transport.SQS.exceptions import LinkLost, LoginRefused

__all__ = ["DefaultLogin", "Keys", "Login", "RefreshableLogin", "StaticLogin"]

logger = logging.getLogger("greenconn.transport.SQS")

#: Seconds before their end at which new credentials are asked for, and at which the old are not used
#: ones any more (botocore's).
EARLY: Final = 15 * 60.0
LATE: Final = 10 * 60.0
#: Seconds between two attempts while the old ones are still good.
PAUSE: Final = 60.0


def _never(seconds: float) -> bool:
    return False


class Keys:
    """An access key with its secret, which ``repr()`` does not show.

    Arguments:
        ends_within: whether they end within so many seconds.  Never waits.
    """

    def __init__(
        self,
        access_key: str,
        secret_key: str,
        token: str | None = None,
        ends_within: Callable[[float], bool] = _never,
    ) -> None:
        self.credentials = Credentials(access_key, secret_key, token)
        self.ends_within = ends_within

    def __repr__(self) -> str:
        return f"<Keys {self.credentials.access_key[:4]}...>"


class Login(ABC):
    """The credentials of one user."""

    #: Whether :meth:`renew` may bring others.
    can_renew = False

    @abstractmethod
    def keys(self, deadline: Deadline) -> Keys:
        """Return credentials that are good now.  May switch.

        Raises:
            LoginRefused: there are none.
            TimeoutError: they did not come in time.
        """

    @abstractmethod
    def renew(self, deadline: Deadline) -> Keys:
        """Ask for new credentials, where others can be had.  May switch; raises as :meth:`keys`."""

    def forget(self) -> None:  # noqa: B027
        """Forget what is under way in the child of a fork."""


class StaticLogin(Login):
    """Credentials of the URL or the options."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def keys(self, deadline: Deadline) -> Keys:
        """Return the credentials, which never change."""
        return self._keys

    renew = keys


class RefreshableLogin(Login):
    """Credentials that end, and are asked for once for everybody who needs them.

    Those who sign shortly before their end go on with what there is while new ones are asked for.

    Arguments:
        early, late: seconds before their end at which that begins, and at which one waits for it.
    """

    can_renew = True

    def __init__(self, early: float = EARLY, late: float = LATE) -> None:
        self._early = early
        self._late = late
        self._keys: Keys | None = None
        self._flights = SingleFlight("sqs-login")
        self._next_try = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._keys!r}>"

    def forget(self) -> None:
        """Forget what is under way in the child of a fork."""
        self._flights.forget()

    def keys(self, deadline: Deadline) -> Keys:
        """See :class:`Login`."""
        keys = self._keys
        if keys is None or keys.ends_within(0.0):
            return self.renew(deadline)
        if keys.ends_within(self._early) and monotonic() >= self._next_try:
            self._next_try = monotonic() + PAUSE
            if keys.ends_within(self._late):
                return self.renew(deadline)
            spawn("sqs-login", self._try_to_renew)
        return keys

    def renew(self, deadline: Deadline) -> Keys:
        """See :class:`Login`."""
        return self._flights.run("keys", self._renewed, deadline)

    def _renewed(self) -> Keys:
        keys = self._keys = self._fetch()
        return keys

    def _try_to_renew(self) -> None:
        try:
            self.renew(Deadline(PAUSE))
        except (LoginRefused, LinkLost, TimeoutError) as exc:
            logger.warning("credentials for AWS could not be renewed yet: %s", exc)

    @abstractmethod
    def _fetch(self) -> Keys:
        """Return new ones.  May switch.

        Raises:
            LoginRefused: there are none.
        """


class DefaultLogin(RefreshableLogin):
    """Credentials that botocore finds: in the environment, in files, of the container or the machine.

    It does that over sockets and locks of its own, so in a thread.
    """

    def _fetch(self) -> Keys:
        try:
            return in_threadpool(_find)
        except LoginRefused:
            raise
        except Exception as exc:  # a process of the program that gives them may write anything
            said = str(exc).partition("\n")[0][:300]
            kind = "" if isinstance(exc, BotoCoreError) else f"{type(exc).__name__}: "
            raise LoginRefused(f"no credentials for AWS: {kind}{said}") from None


def _find() -> Keys:
    """Return new credentials.  Blocks; starts anew each time, since environment and files may change."""
    found = botocore.session.Session().get_credentials()
    if found is None:
        raise LoginRefused(
            "no credentials for AWS: pass them in the URL (sqs://key:secret@), in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or in AWS' files"
        )
    frozen = found.get_frozen_credentials()
    ends_within = getattr(found, "refresh_needed", _never)
    return Keys(frozen.access_key, frozen.secret_key, frozen.token, ends_within)
