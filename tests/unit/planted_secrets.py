"""What test_secrets.py runs in a process of its own: tests that tell a secret, tests that do not.

Not collected with the other tests, since its name does not begin with ``test_``.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import sys

import pytest

from greenconn.connection import Connection
from greenconn.credentials import Token
from greenconn.transport import resolve_transport
from greenconn.url import parse_url

SECRET = "correct horse/battery"
logger = logging.getLogger("greenconn.planted")


def give() -> Connection:
    return Connection("memory://", userid="me", password=SECRET)


def test_shows_in_a_log_line() -> None:
    give()
    logger.debug("logging in with %s", SECRET)


def test_shows_in_a_quoted_form() -> None:
    give()
    logger.warning("connecting to amqp://me:correct%20horse%2Fbattery@host/")


def test_shows_in_an_encoded_form() -> None:
    give()
    logger.debug("Authorization: Basic %s", base64.b64encode(f"me:{SECRET}".encode()).decode())


def test_shows_in_a_logged_error() -> None:
    give()
    try:
        raise LookupError(SECRET)
    except LookupError:
        logger.info("it failed", exc_info=True)


def test_shows_in_an_expected_error() -> None:
    give()
    with pytest.raises(LookupError):
        raise LookupError(SECRET)


def test_shows_in_the_cause_of_an_error() -> None:
    give()
    with pytest.raises(LookupError):
        raise LookupError("harmless") from ValueError(SECRET)


def test_shows_on_standard_error() -> None:
    give()
    print("password:", SECRET, file=sys.stderr)


def test_shows_a_token() -> None:
    Token("eyJhbGciOi")
    logger.info("renewing eyJhbGciOi")


def test_shows_an_option() -> None:
    Connection("memory://", transport_options={"sentinel_kwargs": {"password": "watchword"}})
    logger.info("the sentinel wants watchword")


def test_says_nothing() -> None:
    give()
    logger.info("connected to %s", give().as_uri())
    with pytest.raises(ValueError, match="port"):
        parse_url("amqp://me:whatever@host:port//")


def test_says_what_another_test_gave() -> None:
    logger.info("this is nobody's password here: %s", SECRET)


def test_says_it_within_the_library_on_python_3_12() -> None:
    give()
    with contextlib.suppress(KeyError):
        resolve_transport(SECRET)
