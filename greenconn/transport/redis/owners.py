"""Whether the owner of something in the server lives.

An owner is one life of a link.  Its name ends with the number that the server gave to its connection, so
that others can look whether that connection is still there, as a broker of AMQP knows it: a process
that was killed owns nothing any more, whatever its lease says.  Where the server does not tell (it is
older than 6.2, or the user may not ask) the lease alone decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from redis.exceptions import ResponseError

from greenconn.transport.virtual.owners import is_lost, new_owner
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["is_alive", "owner_of"]

#: Between the two parts of a name.
_SEPARATOR: Final = "-"


def owner_of(client_id: int | None) -> str:
    """Return a name that no other link has.

    Arguments:
        client_id: the server's number of its connection; None: it did not tell.
    """
    name = new_owner()
    return name if client_id is None else f"{name}{_SEPARATOR}{client_id}"


def is_alive(link: RedisLink, owner: str) -> bool:
    """Return whether *owner* may still use what it owns, as far as is known.  May switch."""
    if is_lost(owner):
        return False
    link.sweeper.start()  # somebody must count the time in which its lease ends
    if link.sweeper.dead([owner]):
        return False
    client_id = owner.rpartition(_SEPARATOR)[2] if _SEPARATOR in owner else ""
    return not client_id.isdecimal() or _is_connected(link, client_id)


def _is_connected(link: RedisLink, client_id: str) -> bool:
    """Return whether the server has a client of this number, or does not say so.  May switch."""
    try:
        clients = link.call(pack(b"CLIENT", b"LIST", b"ID", client_id), what="looking for an owner")
    except ResponseError:
        return True
    return bool(clients)
