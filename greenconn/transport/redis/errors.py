"""Redis' errors: redis-py's classes, with a remedy in the text.

An error reply to a command becomes redis-py's own class for it, which names the server, and says
what to do where that is known.  What means a lost connection is of amqp's recoverable classes too,
so that whatever knows how to recover does so here as well.
"""

from __future__ import annotations

import re
from typing import Final

from redis import exceptions as redis

from greenconn.exceptions import (
    AccessRefused,
    AMQPError,
    FrameError,
    NotAllowed,
    RecoverableConnectionError,
)
from greenconn.wire.resp import ErrorReply


class _Both:
    """Makes an error of amqp's kind and of redis-py's at once."""

    def __init__(self, text: str = "") -> None:
        for base in type(self).__mro__:
            if base.__module__ == redis.__name__:
                base.__init__(self, text)  # type: ignore[misc]  # its own attributes
                break
        AMQPError.__init__(self, text)
        self.args = (text,)  # what copies are made of

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"


class LinkLost(_Both, RecoverableConnectionError, redis.ConnectionError):  # type: ignore[misc]
    """The connection to the server is gone."""


class ServerNotReady(LinkLost, redis.BusyLoadingError):
    """The server cannot work now: it loads its data, runs a script, is full or no master (any more)."""


class NodeLost(LinkLost):
    """A node of a cluster is gone, or serves no keys now; the others go on.

    What was sent may have been carried out.
    """


class ReplyLate(LinkLost, redis.TimeoutError):
    """The server did not reply to a command in time."""


class LoginRefused(_Both, AccessRefused, redis.AuthenticationError):  # type: ignore[misc]
    """The server does not take the user name or the password."""


class CommandRefused(_Both, AccessRefused, redis.NoPermissionError):  # type: ignore[misc]
    """The user may not send this command, or not touch this key."""


class NoSuchDatabase(_Both, NotAllowed, redis.ResponseError):  # type: ignore[misc]
    """The server has no database of that number."""


class NotRedis(_Both, FrameError, redis.InvalidResponse):  # type: ignore[misc]
    """The server does not speak Redis' protocol."""


#: First words of error replies after which the connection is of no use, and why: another server is the
#: master, or this one will do nothing for a while.  What was under way is asked anew in the next life.
ENDS_THE_LINK: Final[dict[str, str]] = {
    "READONLY": "the server is no master",
    "LOADING": "the server is not ready yet",
    "MASTERDOWN": "the server has no ready master",
    "UNBLOCKED": "the server is no master any more",
    "BUSY": "the server executes nothing else until that script ends, or is killed with SCRIPT KILL",
}

#: What a call may raise while the link lives: the server refuses, or no node of a cluster serves the
#: keys now.  What goes on in the background waits, and tries again.
PASSING: Final = (redis.ResponseError, LinkLost, TimeoutError)

#: How a server before version 7 wraps the error of a command in a script.
_IN_SCRIPT: Final = re.compile(r"@user_script: ?\d+: -?(?P<code>[A-Z]+) ")

#: What servers say when the user may not do what a script does: Redis 7; Redis 8 and Valkey.
_ACL_IN_SCRIPT: Final = ("The user executing the script", "ACL failure in script")

#: What a server says to WAIT when it has become a replica since the message was stored.
_WAIT_AT_REPLICA: Final = "WAIT cannot be used with replica"

#: What servers before Redis 7.0 say, and why they are asked.
_NO_SHARDS: Final = re.compile(r"unknown command .?S(?:SUBSCRIBE|PUBLISH)\b", re.IGNORECASE)
_SHARDS_REMEDY: Final = (
    "sharded pub/sub needs Redis 7.0: set the transport option fanout_sharding to 'off'"
)

#: How the reply begins with which a server ends a connection: what came was no command of ours, so
#: bytes were changed on their way, and it is unknown which commands it did not understand.
PROTOCOL_ERROR: Final = "ERR Protocol error"

_CLUSTER_REMEDY: Final = (
    "this is a node of a cluster, and the key is on another one, or on its way there: connect with "
    "redis+cluster://, or rediss+cluster:// for TLS"
)

#: First word of an error reply -> redis-py's class, and the remedy.
_CLASSES: Final[dict[str, tuple[type[redis.ResponseError], str]]] = {
    "OOM": (
        redis.OutOfMemoryError,
        "the server has reached maxmemory and refuses writes: consume, or raise maxmemory",
    ),
    "MISCONF": (
        redis.ResponseError,
        "the server cannot write to its disk and refuses writes: free disk space, or set "
        "stop-writes-on-bgsave-error to no",
    ),
    "NOPERM": (
        CommandRefused,
        "the user may not do this: docs/redis.rst lists the commands and keys that are needed",
    ),
    "NOREPLICAS": (
        redis.ResponseError,
        "too few replicas follow the master (min-replicas-to-write): it refuses writes",
    ),
    "WRONGTYPE": (
        redis.ResponseError,
        "a key of greenconn has another type: use another database, or a global_keyprefix",
    ),
    "NOSCRIPT": (redis.NoScriptError, ""),
    "CROSSSLOT": (
        redis.ResponseError,
        "this is a node of a cluster, and the keys are on several: connect with redis+cluster://, or "
        "rediss+cluster:// for TLS",
    ),
    "NOAUTH": (
        LoginRefused,
        "the server wants a login that the connection was opened without: redis://:password@host/0",
    ),
    "MOVED": (redis.ResponseError, _CLUSTER_REMEDY),
    "ASK": (redis.ResponseError, _CLUSTER_REMEDY),
    "TRYAGAIN": (redis.ResponseError, _CLUSTER_REMEDY),
    "CLUSTERDOWN": (
        redis.ResponseError,
        "this is a node of a cluster that does not serve the key now: CLUSTER INFO says which slots "
        "have no master; bring their nodes back, or set cluster-require-full-coverage to no",
    ),
}


def _code_of(reply: ErrorReply) -> str:
    """Return the first word of an error reply, or of the error that a script met."""
    nested = _IN_SCRIPT.search(str(reply)) if reply.code == "ERR" else None
    return reply.code if nested is None else nested["code"]


def as_error(reply: ErrorReply, where: str, what: str = "") -> Exception:
    """Return the error that an error reply stands for.

    Arguments:
        where: the server's URL, password masked.
        what: the operation, for the message.
    """
    code = _code_of(reply)
    if any(each in str(reply) for each in _ACL_IN_SCRIPT):
        code = "NOPERM"
    elif _WAIT_AT_REPLICA in str(reply):
        code = "UNBLOCKED"
    text = f"{where}: {what}: {reply}" if what else f"{where}: {reply}"
    if code in ENDS_THE_LINK:
        return ServerNotReady(f"{text} ({ENDS_THE_LINK[code]})")
    if code == "ERR" and str(reply).startswith(PROTOCOL_ERROR):
        why = "the command was damaged on its way"
        if "bulk length" in text:
            why += ", or a string in it is above the server's setting proto-max-bulk-len"
        return LinkLost(f"{text} ({why})")
    cls, remedy = _CLASSES.get(code, (redis.ResponseError, ""))
    if _NO_SHARDS.search(str(reply)):
        remedy = _SHARDS_REMEDY
    return cls(f"{text} ({remedy})" if remedy else text)
