"""What is told about errors: one line, with the remedy."""

from __future__ import annotations

import pytest

from greenconn.cli.broker import error_line
from greenconn.exceptions import (
    AccessRefused,
    ConnectionBlocked,
    ConnectionForced,
    ContentDisallowed,
    KombuError,
    NotAllowed,
    NotFound,
    OperationalError,
    PreconditionFailed,
    PublishRefused,
    PublishTimeout,
    Unroutable,
)
from greenconn.transport.amqp.handshake import with_remedy
from greenconn.url import parse_url


def caused(error: BaseException, cause: BaseException) -> BaseException:
    """*error* with a cause."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "is the broker running", 1),
        (AccessRefused("ACCESS_REFUSED"), "check user, password", 1),
        (NotAllowed("vhost x not found"), "virtual host", 1),
        (NotFound("no queue 'x'"), "check the name", 1),
        (NotFound("NOT_FOUND - no exchange 'x'"), "check the name of the exchange", 1),
        (PreconditionFailed("durable"), "other arguments", 1),
        (Unroutable("NO_ROUTE"), "check the name of the queue", 1),
        (ConnectionBlocked("blocked"), "alarm", 1),
        (
            caused(
                PublishTimeout("late", maybe_delivered=True), ConnectionBlocked("low on memory")
            ),
            "late: look at the broker's memory and disk alarms",
            1,
        ),
        (
            caused(
                PublishTimeout("late", maybe_delivered=False), ConnectionRefusedError(111, "no")
            ),
            "late: is the broker running",
            1,
        ),
        (PublishTimeout("late", maybe_delivered=True), "did not confirm", 1),
        (ConnectionForced("shutdown"), "start it again", 1),
        (
            caused(OperationalError("lost"), ConnectionResetError(104, "reset")),
            "look at its log",
            1,
        ),
        (ContentDisallowed("pickle"), "--accept", 1),
        (TimeoutError("no answer"), "check host, port and firewall", 1),
        (OSError(-2, "Name or service not known"), "check the host name", 1),
        (OSError(28, "No space left on device"), "No space left on device", 1),
        (KombuError("a\n  b"), "a b", 1),
        (caused(OperationalError("not let in"), AccessRefused("x")), "check user, password", 1),
        (caused(PublishRefused("no"), NotFound("x")), "check the name of the exchange", 1),
        (Unroutable("no route", exchange="e", routing_key="k"), "queues bind", 1),
        (Unroutable("no queue", routing_key="k"), "queues declare", 1),
        (ValueError("bad port"), "bad port", 2),
        (KeyError("No such transport"), "No such transport", 2),
        (ImportError("no module x", name="x"), "no module x", 2),
        (ImportError("no module rich", name="rich"), "pip install 'greenconn[cli]'", 2),
        (AssertionError("oops"), "this is a bug", 1),
        (OperationalError(), "OperationalError", 1),
    ],
)
def test_complaints(error: BaseException, text: str, code: int) -> None:
    line, found = error_line(error)
    assert text in line
    assert "\n" not in line
    assert not line.startswith(("[", "(", "None"))
    assert found == code


def test_a_remedy_is_not_said_twice() -> None:
    remedy = "check host, port and firewall"
    assert error_line(TimeoutError(f"gone: {remedy}"))[0].count(remedy) == 1
    refused = with_remedy("PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'x'")
    assert error_line(PreconditionFailed(refused))[0].count("other arguments") == 1


def test_passwords_are_masked() -> None:
    assert "secret" not in error_line(OSError("amqp://guest:secret@host// is away"))[0]
    assert "secret" not in error_line(OSError("'amqp://guest:my secret@host//' is away"))[0]
    assert "secret" not in error_line(OSError('"amqp://guest:my\'s secret@host//" is away'))[0]


def test_an_at_sign_outside_of_a_url_masks_nothing() -> None:
    with pytest.raises(ValueError, match="port") as caught:
        parse_url("amqp://guest:secret@host:abc//")
    line, _ = error_line(caught.value)
    assert "'amqp://guest:**@host:abc//': the port must be a number from 0 to 65535" in line
