"""pymongo's errors as those of greenconn."""

from __future__ import annotations

import copy

import pytest

errors = pytest.importorskip("pymongo.errors")

from greenconn.exceptions import AccessRefused, RecoverableConnectionError  # noqa: E402
from greenconn.transport.mongodb.errors import (  # noqa: E402
    LinkLost,
    LoginRefused,
    ReplyLate,
    translated_error,
)
from greenconn.transport.mongodb.transport import Transport  # noqa: E402

WHERE = "mongodb://host/"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.AutoReconnect("gone"), LinkLost),
        (errors.NetworkTimeout("late"), ReplyLate),
        (errors.ExecutionTimeout("late"), ReplyLate),
        (errors.ServerSelectionTimeoutError("none, Timeout: 3s, Topology..."), LinkLost),
        (errors.OperationFailure("who are you", 18), LoginRefused),
        (errors.OperationFailure("not allowed", 13), LoginRefused),
    ],
)
def test_errors_of_the_driver(error: Exception, kind: type[Exception]) -> None:
    found = translated_error(error, WHERE)  # type: ignore[arg-type]
    assert type(found) is kind
    assert str(found).startswith(WHERE)
    assert "Topology" not in str(found)
    assert str(copy.copy(found)) == str(found)


def test_a_login_that_was_refused_behind_a_lost_connection() -> None:
    error = errors.AutoReconnect("gone")
    error.__cause__ = errors.OperationFailure("who are you", 18)
    found = translated_error(error, WHERE)
    assert isinstance(found, AccessRefused)
    assert "check user name, password" in str(found)


def test_other_errors_are_raised_as_they_are() -> None:
    assert translated_error(errors.DuplicateKeyError("twice"), WHERE) is None


def test_users_may_catch_either_class() -> None:
    assert issubclass(LinkLost, (RecoverableConnectionError, errors.AutoReconnect))
    assert repr(LinkLost("gone")) == "LinkLost('gone')"
    assert repr(LoginRefused("no")) == "LoginRefused('no')"


def test_a_lost_connection_is_no_error_of_a_channel() -> None:
    for kind in (LinkLost, ReplyLate, errors.ConnectionFailure, errors.AutoReconnect):
        assert issubclass(kind, Transport.connection_errors)
        assert issubclass(kind, Transport.recoverable_connection_errors)
        assert not issubclass(kind, Transport.channel_errors)
    assert issubclass(errors.OperationFailure, Transport.channel_errors)
