"""Claims: the fields under which one link takes messages, and whether it may take any.

A claim moves messages from the lists of a queue to the hash of held messages, each under a field of its
own: the link's prefix and a number.  Until its reply has come nobody knows what a claim has taken, so
its numbers are kept for the next life of the connection.

All scripts and permissions that this needs are tried once on each connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from greenconn.green.deadline import Deadline
from greenconn.green.single_flight import SingleFlight
from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.owners import Owners
from greenconn.transport.redis.scripts import CANARY, CLAIM, MOVE, RENEW, mark
from greenconn.wire.resp import pack

__all__ = ["Claims"]

#: The number of the message that tries the permissions.
CANARY_NUMBER: Final = 0


class Claims:
    """The claims of one link that are no feed's.

    Arguments:
        commands: of the link.
        owners: the link is one of them.
        keep_alive: sees that others know this owner as living.  Never switches.

    Attributes:
        under_way: numbers of the fields that they may have filled and whose replies have not come.
        is_trying: the message that tries the permissions may be held.
    """

    __slots__ = (
        "_are_permitted",
        "_commands",
        "_flight",
        "_keep_alive",
        "_last_number",
        "_owners",
        "is_trying",
        "under_way",
    )

    def __init__(self, commands: Commands, owners: Owners, keep_alive: Callable[[], None]) -> None:
        self._commands = commands
        self._owners = owners
        self._keep_alive = keep_alive
        self._last_number = 0
        self._are_permitted = False
        self._flight = SingleFlight("redis-permissions")
        self.under_way: set[int] = set()
        self.is_trying = False

    def take_numbers(self, count: int) -> int:
        """Reserve numbers for fields, and return the first of them.  Never switches."""
        first = self._last_number + 1
        self._last_number += count
        return first

    def doubtful(self) -> Iterable[int]:
        """Return the numbers of the fields that may be filled.  Never switches."""
        return [*self.under_way, CANARY_NUMBER] if self.is_trying else [*self.under_way]

    def check(self, deadline: Deadline) -> None:
        """See that messages may be taken, and that others know this owner as living.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refuses; names what.
        """
        if not self._are_permitted:
            self._flight.run("check", self._check, deadline)

    def _check(self) -> None:
        commands = self._commands
        keys, scripts = commands.keys, commands.scripts
        canary = f"{keys.prefix}greenconn.canary.{commands.owner}".encode()
        held = (keys.unacked, keys.unacked_index)
        field = f"{commands.prefix}{CANARY_NUMBER}"
        self.is_trying = True
        scripts.forget()  # what failed before was not remembered by the server
        asked = [
            scripts.call(CANARY, (canary,)),
            scripts.call(RENEW, *self._owners.renewal()),
            scripts.call(CLAIM, (*held, canary), commands.prefix, 0, 1, 1, ', "", ""]', mark()),
            scripts.call(MOVE, (*held, keys.owners), "", 0),
            pack("HDEL", keys.unacked, field),
            pack("ZREM", keys.unacked_index, field),
            pack("HMGET", keys.unacked, field),
            pack("EXISTS", canary),
            pack("RPOP", canary),  # to a script a refusal looks like an empty list
        ]
        try:
            commands.call_all(asked, what="consuming")
            commands.check_open()  # it may have ended behind the replies
        finally:
            if commands.lost is None:
                self.is_trying = False
        self._are_permitted = True
        self._keep_alive()
