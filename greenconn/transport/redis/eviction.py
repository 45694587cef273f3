"""A check whether the server evicts keys when its memory is full.

Queues are keys: a server with a ``maxmemory-policy`` other than ``noeviction`` deletes whole queues,
with what consumers hold and how queues were declared, and says nothing.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from greenconn.green.supervisor import spawn
from greenconn.transport.redis.pipeline import Pipeline
from greenconn.wire.resp import pack

__all__ = ["ask_for_policy"]

logger = logging.getLogger("greenconn.transport.redis")

_ASK: Final = pack(b"INFO", b"memory")
_FIELD: Final = b"maxmemory_policy:"
#: What deletes nothing.
_SAFE: Final = frozenset({"", "noeviction"})
#: Servers that this process has warned of, with their policies.
_warned: set[tuple[str, str]] = set()


def ask_for_policy(pipeline: Pipeline) -> None:
    """Ask the server, and log a warning where it evicts keys.  Never switches.

    A server that does not say so, or not to this user, is taken for one that evicts nothing.
    """
    pipeline.post(_ASK, lambda reply: _told(pipeline.where, reply))


def _told(where: str, reply: Any) -> None:
    # In the reader.
    if not isinstance(reply, bytes):
        return
    policy = reply.partition(_FIELD)[2].partition(b"\r\n")[0].decode("utf-8", "replace")
    if policy in _SAFE or (where, policy) in _warned:
        return
    _warned.add((where, policy))
    what = "queues that have x-expires" if policy.startswith("volatile") else "queues"
    spawn(
        "log",
        logger.warning,
        "%s: its maxmemory-policy is %s: when its memory is full it silently deletes %s with "
        "their messages; set maxmemory-policy to noeviction",
        where,
        policy,
        what,
    )
