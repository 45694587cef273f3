"""Redis' errors: of both kinds, and with the remedy."""

from __future__ import annotations

import copy
import pickle

import pytest
from redis import exceptions

from greenconn.exceptions import AccessRefused, NotAllowed, RecoverableConnectionError
from greenconn.transport.redis import errors
from greenconn.wire.resp import ErrorReply

#: What servers before version 7 put before the error of a command in a script.
IN_SCRIPT = "ERR Error running script (call to f_1a2b): @user_script:3: @user_script: 3:"


@pytest.mark.parametrize(
    ("cls", "kinds"),
    [
        (errors.LinkLost, (RecoverableConnectionError, exceptions.ConnectionError)),
        (errors.ReplyLate, (RecoverableConnectionError, exceptions.TimeoutError)),
        (errors.ServerNotReady, (errors.LinkLost, exceptions.BusyLoadingError)),
        (errors.LoginRefused, (AccessRefused, exceptions.AuthenticationError)),
        (errors.NoSuchDatabase, (NotAllowed, exceptions.ResponseError)),
    ],
)
def test_both_kinds(cls: type[Exception], kinds: tuple[type[Exception], ...]) -> None:
    error = cls("what happened")
    for kind in kinds:
        assert isinstance(error, kind)
    for same in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(same) == "what happened"
        assert repr(same) == f"{cls.__name__}('what happened')"


@pytest.mark.parametrize(
    ("text", "cls", "remedy"),
    [
        ("READONLY You can't write against a read only replica.", errors.ServerNotReady, "master"),
        ("LOADING Redis is loading the dataset in memory", errors.ServerNotReady, "ready"),
        ("MASTERDOWN Link with MASTER is down", errors.ServerNotReady, "ready"),
        ("BUSY Redis is busy running a script.", errors.ServerNotReady, "SCRIPT KILL"),
        ("BUSYGROUP Consumer Group name already exists", exceptions.ResponseError, ""),
        (f"{IN_SCRIPT} -READONLY You can't write.", errors.ServerNotReady, "no master"),
        (f"{IN_SCRIPT} WRONGTYPE Operation", exceptions.ResponseError, "another database"),
        ("OOM command not allowed", exceptions.OutOfMemoryError, "raise maxmemory"),
        ("MISCONF Redis is configured to save", exceptions.ResponseError, "free disk space"),
        ("NOPERM no permissions", errors.CommandRefused, "docs/redis.rst"),
        ("WRONGTYPE Operation", exceptions.ResponseError, "another database"),
        ("ERR The user executing the script can't", errors.CommandRefused, "commands"),
        (
            "ERR ACL failure in script: User app has no permissions to run the 'lpush' command",
            errors.CommandRefused,
            "docs/redis.rst",
        ),
        ("CLUSTERDOWN Hash slot not served", exceptions.ResponseError, "CLUSTER INFO"),
        ("CROSSSLOT Keys in request", exceptions.ResponseError, "redis+cluster://"),
        ("MOVED 3999 127.0.0.1:6381", exceptions.ResponseError, "redis+cluster://"),
        ("ASK 3999 127.0.0.1:6381", exceptions.ResponseError, "redis+cluster://"),
        ("TRYAGAIN Multiple keys request", exceptions.ResponseError, "redis+cluster://"),
        ("NOREPLICAS Not enough good replicas", exceptions.ResponseError, "min-replicas-to-write"),
        ("NOAUTH Authentication required.", errors.LoginRefused, "login"),
        ("UNBLOCKED force unblock", errors.ServerNotReady, "no master any more"),
        ("ERR WAIT cannot be used with replica instances.", errors.ServerNotReady, "no master any"),
        ("ERR Protocol error: invalid bulk length", errors.LinkLost, "was damaged"),
        (
            "ERR unknown command `SPUBLISH`, with args beginning with: ",
            exceptions.ResponseError,
            "fanout_sharding to 'off'",
        ),
        ("ERR something", exceptions.ResponseError, ""),
    ],
)
def test_replies(text: str, cls: type[Exception], remedy: str) -> None:
    error = errors.as_error(ErrorReply(text), "redis://host", "publishing")
    assert type(error) is cls
    assert text in str(error)
    assert remedy in str(error)
    assert str(error).startswith("redis://host: publishing: ")
