"""Re-authentication of an open link when its credentials change.

A password that is a function, and a credential provider, are asked again every
``reauth_check_interval``: tokens expire, and a server cuts a connection whose token has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from greenconn.green.deadline import Deadline
from greenconn.green.renewal import Renewal
from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.login import Credentials
from greenconn.transport.redis.pipeline import ENDLESS, Pipeline
from greenconn.wire.resp import pack

__all__ = ["Secret"]

logger = logging.getLogger("greenconn.transport.redis")


class Secret:
    """The credentials that one link has logged in with.

    Arguments:
        commands: of the link.
        credentials: returns the login as it is now.
        other_pipelines: returns the open sockets beside that for commands.
    """

    def __init__(
        self,
        commands: Commands,
        credentials: Callable[[], Credentials],
        other_pipelines: Callable[[], list[Pipeline]],
    ) -> None:
        self._commands = commands
        self._credentials = credentials
        self._other_pipelines = other_pipelines
        self._told: Credentials | None = None
        self._renewal: Renewal | None = None

    def watch(self) -> None:
        """Ask again every ``reauth_check_interval``, unless that is 0.  Never switches."""
        interval = self._commands.options.reauth_check_interval
        if interval:
            self._renewal = Renewal(self._renew, logger, self._commands.where, interval)
            self._renewal.begin_in(0.0)

    def stop(self) -> None:
        """Stop, as the link has ended.  Never switches."""
        if self._renewal is not None:
            self._renewal.stop()

    def _renew(self) -> object:
        current = self._credentials()
        if self._told is None:
            self._told = current  # that of the opening
        elif current != self._told:
            self.tell(current, ENDLESS)
        return current[1]

    def tell(self, credentials: Credentials, deadline: Deadline) -> None:
        """Log in anew on the open sockets.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server does not take it; the former login stays.
        """
        user, password = credentials
        command = pack("AUTH", user or "default", password or "")
        self._commands.call(command, deadline, "logging in again")
        self._told = credentials
        for pipeline in self._other_pipelines():
            if pipeline.takes_arrays:
                # A subscriber of RESP2 cannot: it reconnects with the new login.
                pipeline.end(LinkLost(f"{pipeline.where}: logging in again"))
            else:
                pipeline.post(command)
