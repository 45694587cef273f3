"""The login of an open link: told anew when it has changed.

A password that is a function, and a credential provider, are asked again every
``reauth_check_interval``: tokens expire, and a server cuts a connection whose token has.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenconn.green.deadline import Deadline
from greenconn.green.renewal import Renewal
from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.login import Credentials
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["Secret"]

logger = logging.getLogger("greenconn.transport.redis")


class Secret:
    """What one link has logged in with."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._told: Credentials | None = None
        self._renewal: Renewal | None = None

    def watch(self) -> None:
        """Ask again now and then, if what is asked may answer something else.  Never switches."""
        link, client = self._link, self._link.client
        changes = (
            callable(client.password)
            or getattr(client, "credential_provider", None)
            or link.options.credential_provider
        )
        interval = link.options.reauth_check_interval
        if changes and interval:
            self._renewal = Renewal(self._renew, logger, link.where, interval)
            self._renewal.begin_in(0.0)

    def stop(self) -> None:
        """The link is gone.  Never switches."""
        if self._renewal is not None:
            self._renewal.stop()

    def _renew(self) -> object:
        current = self._link.transport.login.credentials()
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
        link = self._link
        user, password = credentials
        command = pack("AUTH", user or "default", password or "")
        link.call(command, deadline, "logging in anew")
        self._told = credentials
        for pipeline in link.other_pipelines():
            if pipeline.takes_arrays:
                # A subscriber of RESP2 cannot: it comes again with the new login.
                pipeline.end(LinkLost(f"{pipeline.where}: to log in anew"))
            else:
                pipeline.post(command)
