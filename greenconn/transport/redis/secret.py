"""The login of an open link: told anew when it has changed.

A password that is a function, and a credential provider, are asked again every
``reauth_check_interval``: tokens expire, and a server cuts a connection whose token has.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from weakref import ref

import gevent
from gevent import Greenlet

from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
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
        self._greenlet: Greenlet[..., Any] | None = None

    def watch(self) -> None:
        """Ask again now and then, if what is asked may answer something else.  Never switches."""
        client = self._link.client
        changes = (
            callable(client.password)
            or getattr(client, "credential_provider", None)
            or self._link.options.credential_provider
        )
        if changes and self._link.options.reauth_check_interval:
            self._greenlet = spawn(
                "redis-reauth", _run, ref(self), self._link.options.reauth_check_interval
            )

    def stop(self) -> None:
        """The link is gone.  Never switches."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)

    @property
    def is_needed(self) -> bool:
        """Whether the link is open."""
        return self._link.lost is None

    def look(self) -> None:
        """Ask for the login, and tell the server if it is another one.  May switch."""
        link = self._link
        try:
            current = link.transport.login.credentials()
            if self._told is None:
                self._told = current  # that of the opening
            elif current != self._told:
                self.tell(current, ENDLESS)
        except Exception as exc:
            if link.lost is None:
                logger.error("%s: cannot log in anew: %s", link.where, exc)

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


def _run(reference: ref[Secret], interval: float) -> None:
    # While it waits it does not keep a link that nobody uses any more.
    while (secret := reference()) is not None and secret.is_needed:
        secret.look()
        del secret
        gevent.sleep(interval)
