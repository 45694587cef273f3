"""Errors of a broker: a remedy where one is known, and the broker and the step in the text."""

from __future__ import annotations

import errno
import ssl

import pytest
from amqp import spec
from amqp.serialization import dumps

from greenconn.exceptions import AccessRefused, ConnectionForced, NotAllowed
from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.handshake import closing_error, opening_error, with_remedy

WHERE = "amqp://user:**@host//"


def close(code: int, text: str) -> bytes:
    """Return the payload of ``connection.close``."""
    class_id, method_id = spec.Connection.Close
    ids = (class_id << 16 | method_id).to_bytes(4, "big")
    return bytes(ids + dumps("BsBB", (code, text, 0, 0)))


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("ACCESS_REFUSED - Login was refused using PLAIN", "check user, password"),
        ("NOT_ALLOWED - vhost x not found", "virtual host in the URL exists"),
        ("PRECONDITION_FAILED - inequivalent arg 'durable'", "exists with other arguments"),
        ("Feature `transient_nonexcl_queues` is deprecated", "durable=True"),
    ],
)
def test_a_known_text_is_followed_by_its_remedy(text: str, remedy: str) -> None:
    said = with_remedy(text)
    assert said.startswith(f"{text} (")
    assert remedy in said


def test_the_class_of_a_close_is_that_of_its_code() -> None:
    assert isinstance(closing_error(close(320, "CONNECTION_FORCED")), ConnectionForced)
    assert isinstance(closing_error(close(530, "NOT_ALLOWED")), NotAllowed)


def test_an_error_of_the_broker_names_broker_and_step() -> None:
    error = opening_error(AccessRefused("no", spec.Connection.Open), WHERE, "the step", Deadline())
    assert type(error) is AccessRefused
    assert f"no ({WHERE}, the step)" in str(error)


def test_a_timeout_names_the_step_and_the_seconds() -> None:
    error = opening_error(TimeoutError("timed out"), WHERE, "the AMQP handshake", Deadline(5))
    assert str(error) == f"{WHERE}: no reply within 5 s (the AMQP handshake)"
    connecting = TimeoutError("host: timed out")
    assert opening_error(connecting, WHERE, "connecting", Deadline(5)) is connecting


def test_an_error_of_the_system_keeps_class_and_number_and_gets_the_hint() -> None:
    refused = ConnectionResetError(errno.ECONNRESET, "reset")
    error = opening_error(refused, WHERE, "the AMQP handshake", Deadline(), ", at the login")
    assert type(error) is ConnectionResetError
    assert error.errno == errno.ECONNRESET
    assert error.strerror == f"{WHERE}: reset (the AMQP handshake, at the login)"


def test_an_error_with_arguments_of_its_own_stays_as_it_is() -> None:
    class Odd(OSError):
        def __init__(self, only: str) -> None:
            super().__init__(only)

    odd = Odd("x")
    assert opening_error(odd, WHERE, "connecting", Deadline()) is odd
    other = KeyError("x")
    assert opening_error(other, WHERE, "connecting", Deadline()) is other
    failed = opening_error(ssl.SSLError(1, "bad"), WHERE, "the TLS handshake", Deadline())
    assert isinstance(failed, ssl.SSLError)
