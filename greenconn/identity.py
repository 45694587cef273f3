"""Names that nobody else has: message ids, consumer tags, reply queues."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from uuid import NAMESPACE_OID, UUID, uuid3, uuid4, uuid5

from gevent import get_hub

__all__ = ["generate_oid", "get_node_id", "oid_from", "program_name", "uuid"]

_node_id: int | None = None


def uuid(_uuid: Callable[[], UUID] = uuid4) -> str:
    """Return a random UUID (version 4) as text.

    Arguments:
        _uuid: what makes it; the default takes a way round the UUID object.
    """
    if _uuid is not uuid4:
        return str(_uuid())
    # Asked anew each time: numbers kept in store would be given out twice after a fork.
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def get_node_id() -> int:
    """Return the number of this process's node: random, the same from the first call on."""
    global _node_id
    if _node_id is None:
        _node_id = uuid4().int
    return _node_id


def generate_oid(node_id: int, process_id: int, thread_id: int, instance: object) -> str:
    """Return the UUID that belongs to an object of one thread of one process of one node."""
    name = f"{node_id:x}-{process_id:x}-{thread_id:x}-{id(instance):x}"
    try:
        return str(uuid3(NAMESPACE_OID, name))
    except ValueError:  # no MD5 here (FIPS)
        return str(uuid5(NAMESPACE_OID, name))


def program_name() -> str:
    """Return what an operator may know this process by: ``program@host:pid``."""
    return f"{_program_at_host(sys.argv[0] if sys.argv else '')}:{os.getpid()}"


@lru_cache(maxsize=1)
def _program_at_host(path: str) -> str:
    host = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return f"{os.path.basename(path) or 'python'}@{host}"


def oid_from(instance: object, threads: bool = True) -> str:
    """Return the UUID that belongs to *instance* here.

    Arguments:
        threads: whether it differs from thread to thread (that is, from hub to hub: greenlets of
            one hub share it, patched or not).
    """
    thread_id = get_hub().thread_ident if threads else 0
    return generate_oid(get_node_id(), os.getpid(), thread_id, instance)
