"""The owners of messages, queues and consumers in a server, and the leases that show them alive.

An owner is one life of a link.  Its name ends with the number that the server gave to its connection, so
that others can look whether that connection is still there, as a broker of AMQP knows it: a process
that was killed owns nothing any more, whatever its lease says.  Where the server does not tell (it is
older than 6.2, or the user may not ask) the lease alone decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Final

from redis.exceptions import ResponseError

from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.scripts import mark
from greenconn.transport.virtual.names import is_lost, new_owner
from greenconn.wire.resp import pack

#: Between the two parts of a name.
_SEPARATOR: Final = "-"
#: Looks of the sweepers in one lease.
LOOKS: Final = 5


def owner_of(client_id: int | None) -> str:
    """Return a name that no other link has.

    Arguments:
        client_id: the server's number of its connection; None: it did not tell.
    """
    name = new_owner()
    return name if client_id is None else f"{name}{_SEPARATOR}{client_id}"


class Owners:
    """The owners in the server of one link, of which the link is one.

    Arguments:
        commands: of the link.
        count_time: makes a process count the time in which leases end.  Never switches.
    """

    def __init__(self, commands: Commands, count_time: Callable[[], None]) -> None:
        self._commands = commands
        self.count_time = count_time

    @property
    def dead_after(self) -> float:
        """Seconds without a sign of life after which what is held is looked at."""
        options = self._commands.options
        return min(options.lease, options.visibility_timeout)

    @property
    def interval(self) -> float:
        """Seconds between two looks of all sweepers together."""
        return self.dead_after / LOOKS

    def is_alive(self, owner: str) -> bool:
        """Return whether *owner* may still use what it owns, as far as is known.  May switch."""
        if is_lost(owner):
            return False
        self.count_time()
        if self.dead([owner]):
            return False
        client_id = owner.rpartition(_SEPARATOR)[2] if _SEPARATOR in owner else ""
        return not client_id.isdecimal() or self._is_connected(client_id)

    def _is_connected(self, client_id: str) -> bool:
        """Return whether the server has a client of this number, or does not say so.  May switch."""
        command = pack(b"CLIENT", b"LIST", b"ID", client_id)
        try:
            clients = self._commands.call(command, what="looking up an owner")
        except ResponseError:
            return True
        return bool(clients)

    def dead(self, owners: Sequence[str]) -> list[str]:
        """Return those of *owners* whose lease has ended.  May switch."""
        commands = self._commands
        now, *expiries = commands.call_all(
            [pack(b"ZSCORE", commands.keys.owners, each) for each in ("clock", *owners)],
            what="sweeping",
        )
        return [
            owner
            for owner, expiry in zip(owners, expiries, strict=True)
            if owner != commands.owner and (expiry is None or float(expiry) <= float(now or 0))
        ]

    def renewal(self, handles: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Return keys and arguments of the script that says that the link lives, and holds these."""
        commands = self._commands
        keys = (commands.keys.owners, commands.keys.unacked_index)
        # The time that is counted may be behind by what lies between two looks of the sweepers.
        lasts_ms = int((commands.options.lease + self.interval) * 1000)
        return keys, commands.owner, lasts_ms, mark(), *handles


class FormerOwners:
    """The former lives of a connection to one place: their leases, and what they listened to."""

    def __init__(self) -> None:
        #: Those that the server may still take for living, with the tags of the partitions.
        self._leased: list[tuple[str, str]] = []
        #: Queues that listened to fan-out exchanges, and when that ended.
        self._listened: dict[str, float] = {}

    def add(self, owner: str, listened: Iterable[str], leased: Iterable[str]) -> None:
        """Note that the life of *owner* is over.  Never switches.

        Arguments:
            listened: queues that listened to fan-out exchanges.
            leased: the tags of the partitions where the server may still take it for living.
        """
        self._listened.update(dict.fromkeys(listened, monotonic()))
        self._leased += ((tag, owner) for tag in leased)

    def gap(self, queue: str) -> float | None:
        """Return, once, the seconds since a queue was subscribed in a former life; None if never."""
        since = self._listened.pop(queue, None)
        return None if since is None else monotonic() - since

    def end_leases(self, commands_of: Callable[[str], Commands]) -> None:
        """End their leases over a link which has requeued what they held.  May switch.

        An owner without a lease is no consumer, and others requeue what it still holds.

        Arguments:
            commands_of: returns the commands of the link for a partition, by its tag.
        """
        leased, done = self._leased, 0
        for tag, owner in leased:
            commands = commands_of(tag)
            commands.call(pack(b"ZREM", commands.keys.owners, owner), what="ending leases")
            done += 1
        del leased[:done]
