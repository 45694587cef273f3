"""Arguments that a transport does not implement are named in the log, once each."""

from __future__ import annotations

import logging

import pytest

from greenconn.broker.entities import ArgumentOf, SupportedArguments, warn_of_unsupported
from tests.tiny_client import TinyClient

SOME = SupportedArguments(queue=frozenset({"x-expires"}), message=frozenset({"priority"}))


@pytest.fixture
def client(unique: str) -> TinyClient:
    """A broker that no other test has warned about."""
    return TinyClient(f"memory://host/{unique}")


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.name == "greenconn.transport.arguments" and each.levelno == logging.WARNING
    ]


def test_what_is_missing() -> None:
    given = {"x-expires": 1, "x-max-length": 5, "x-message-ttl": None, "mine": 1, "x-mine": 1}
    assert SOME.missing(ArgumentOf.QUEUE, given) == ["x-max-length"]
    assert SOME.missing(ArgumentOf.MESSAGE, {"priority": 5, "expiration": "9"}) == ["expiration"]
    assert SOME.missing(ArgumentOf.CONSUMER, {"x-priority": 0}) == ["x-priority"]
    assert SOME.missing(ArgumentOf.EXCHANGE, {"alternate-exchange": "ae"}) == ["alternate-exchange"]


def test_each_is_named_once(client: TinyClient, caplog: pytest.LogCaptureFixture) -> None:
    def warn(name: str, **arguments: object) -> None:
        given = {each.replace("_", "-"): value for each, value in arguments.items()}
        warn_of_unsupported(SOME, client, ArgumentOf.QUEUE, name, given)

    warn("q", x_max_length=5, x_overflow="drop-head", x_expires=1)
    warn("q", x_max_length=5)
    warn("q", x_max_length=6, x_message_ttl=7)
    warn("other", x_max_length=5)
    first, second, third = texts(caplog)
    where = f"{client.as_uri()}: queue 'q'"
    assert first.startswith(
        f"{where}: arguments that this transport does not implement are ignored"
    )
    assert "x-max-length=5, x-overflow='drop-head' (" in first
    assert "x-expires" not in first
    assert "ignored: x-message-ttl=7 (" in second
    assert "queue 'other'" in third


def test_many_queues_do_not_fill_the_log(
    client: TinyClient, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        name = f"reply-{number}"
        warn_of_unsupported(SOME, client, ArgumentOf.QUEUE, name, {"x-max-length": 5})
    assert len(texts(caplog)) == 100
