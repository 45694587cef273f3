"""Whether messages may be taken: all scripts and permissions are tried once on each connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from greenconn.green.deadline import Deadline
from greenconn.green.single import SingleFlight
from greenconn.transport.redis.clock import mark
from greenconn.transport.redis.scripts import CANARY, CLAIM, MOVE
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["CANARY_NUMBER", "Permissions"]

#: The number of the message that tries them.
CANARY_NUMBER: Final = 0


class Permissions:
    """The permissions that one link needs to consume.

    Attributes:
        is_trying: the message that tries them may be held.
    """

    __slots__ = ("_are_there", "_flight", "_link", "is_trying")

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._are_there = False
        self._flight = SingleFlight("redis-permissions")
        self.is_trying = False

    def check(self, deadline: Deadline) -> None:
        """See that messages may be taken, and that others know this owner as living.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refuses; names what.
        """
        if not self._are_there:
            self._flight.run("check", self._check, deadline)

    def _check(self) -> None:
        link = self._link
        keys, scripts = link.keys, link.scripts
        canary = f"{link.keys.prefix}greenconn.canary.{link.owner}".encode()
        held = (keys.unacked, keys.unacked_index)
        field = f"{link.prefix}{CANARY_NUMBER}"
        self.is_trying = True
        scripts.forget()  # what failed before was not remembered by the server
        commands = [
            scripts.call(CANARY, (canary,)),
            link.holding.renewal(),
            scripts.call(CLAIM, (*held, canary), link.prefix, 0, 1, 1, ', "", ""]', mark()),
            scripts.call(MOVE, (*held, keys.owners), "", 0),
            pack("HDEL", keys.unacked, field),
            pack("ZREM", keys.unacked_index, field),
            pack("HMGET", keys.unacked, field),
            pack("EXISTS", canary),
            pack("RPOP", canary),  # to a script a refusal looks like an empty list
        ]
        try:
            link.call_all(commands, what="consuming")
            link.check_open()  # it may have ended behind the replies
        finally:
            if link.lost is None:
                self.is_trying = False
        self._are_there = True
        link.keep_alive()
