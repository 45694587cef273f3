"""Options."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenconn.options import (
    BROKER_HEARTBEAT,
    CONNECTION_QUERY,
    AmqpOptions,
    ConnectOptions,
    MemoryOptions,
    Retry,
    from_transport_options,
    known_options,
    query_types,
    typed_query,
)

CLASSES = [AmqpOptions, ConnectOptions, MemoryOptions, Retry]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))]
)
def test_heartbeat_of_the_broker_is_one_object(copied: Callable[[Any], Any]) -> None:
    assert copied(BROKER_HEARTBEAT) is BROKER_HEARTBEAT
    assert copied({"heartbeat": [BROKER_HEARTBEAT]})["heartbeat"][0] is BROKER_HEARTBEAT
    assert copied(AmqpOptions()).heartbeat is BROKER_HEARTBEAT


def test_heartbeat_of_the_broker_is_kombus_default() -> None:
    assert BROKER_HEARTBEAT == 0
    assert not BROKER_HEARTBEAT
    assert repr(BROKER_HEARTBEAT) == "0"
    assert isinstance(BROKER_HEARTBEAT, int)
    zero: int = 0
    assert zero is not BROKER_HEARTBEAT
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(BROKER_HEARTBEAT, protocol)) is BROKER_HEARTBEAT


@pytest.mark.parametrize("cls", CLASSES)
def test_classes_are_frozen_and_take_keywords_only(cls: type[Any]) -> None:
    options = cls()
    assert cls() == options
    with pytest.raises(AttributeError, match=f"{cls.__name__}.{cls.fields[0]} cannot be changed"):
        setattr(options, cls.fields[0], None)
    with pytest.raises(TypeError):
        cls(1)


def test_defaults_of_the_design() -> None:
    assert ConnectOptions().connect_timeout == 5.0
    amqp = AmqpOptions()
    assert (amqp.reply_timeout, amqp.confirm_timeout, amqp.blocked_timeout) == (30.0, 30.0, 30.0)
    assert not amqp.confirm_publish
    retry = Retry()
    assert (retry.tries, retry.delay, retry.backoff, retry.max_delay) == (3, 1.0, 2.0, 60.0)
    assert retry.jitter


@pytest.mark.parametrize(
    ("cls", "kwargs", "said"),
    [
        (
            ConnectOptions,
            {"connect_timeout": -1},
            r"ConnectOptions.connect_timeout must be a number of seconds, at least 0, or None, got -1",
        ),
        (
            ConnectOptions,
            {"interval_start": None},
            "interval_start must be a number of seconds, at least 0, got None",
        ),
        (ConnectOptions, {"interval_step": float("nan")}, "interval_step must be .* got nan"),
        (ConnectOptions, {"connect_retries_timeout": float("inf")}, "got inf"),
        (
            ConnectOptions,
            {"max_retries": 1.5},
            "max_retries must be an integer, at least 0, or None, got 1.5",
        ),
        (ConnectOptions, {"max_retries": True}, "max_retries must be .* got True"),
        (ConnectOptions, {"errback": 1}, "errback must be a callable, or None, got 1"),
        (AmqpOptions, {"confirm_timeout": "30"}, "confirm_timeout must be .* got '30'"),
        (AmqpOptions, {"heartbeat": -1}, "heartbeat must be .* got -1"),
        (AmqpOptions, {"confirm_publish": "1"}, "confirm_publish must be of type bool, got '1'"),
        (AmqpOptions, {"locale": None}, "locale must be of type str, got None"),
        (
            AmqpOptions,
            {"connection_name": 3},
            "connection_name must be of type str, or None, got 3",
        ),
        (
            AmqpOptions,
            {"client_properties": []},
            r"client_properties must be of type Mapping, or None, got \[\]",
        ),
        (
            AmqpOptions,
            {"channel_max": 65536},
            "channel_max must be an integer from 0 to 65535, or None, got 65536",
        ),
        (AmqpOptions, {"frame_max": 100}, "frame_max must be at least 4096 bytes, .* got 100"),
        (
            AmqpOptions,
            {"max_message_size": 0},
            "max_message_size must be a positive integer, got 0",
        ),
        (AmqpOptions, {"on_blocked": "x"}, "on_blocked must be a callable, or None, got 'x'"),
        (MemoryOptions, {"body_encoding": 1}, "body_encoding must be .* got 1"),
        (Retry, {"tries": 0}, "Retry.tries must be a positive integer, got 0"),
        (Retry, {"tries": None}, "tries must be .* got None"),
        (Retry, {"delay": 61}, "delay must be at most 60.0 s.*hold='broker'.* got 61"),
        (Retry, {"max_delay": 60.1}, "max_delay must be .* got 60.1"),
        (Retry, {"delay": -1}, "delay must be .* got -1"),
        (Retry, {"backoff": 0.5}, "backoff must be a number, at least 1, got 0.5"),
        (Retry, {"jitter": None}, "jitter must be of type bool, got None"),
    ],
)
def test_values_are_checked(cls: type[Any], kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cls(**kwargs)


def test_values_that_may_be_given() -> None:
    assert AmqpOptions(frame_max=0, channel_max=0, heartbeat=2.5).heartbeat == 2.5
    assert AmqpOptions(heartbeat=None).heartbeat is None
    assert from_transport_options(AmqpOptions, {"confirm_publish": 1})[0].confirm_publish == 1
    assert AmqpOptions(socket_settings={6: 1}, on_open=print).on_open is print
    assert ConnectOptions(connect_timeout=None, max_retries=0).max_retries == 0


def test_retry_of() -> None:
    assert Retry.of(None) is None
    retry = Retry(tries=2)
    assert Retry.of(retry) is retry
    assert Retry.of({"tries": 2}) == retry
    with pytest.raises(ValueError, match="unknown option 'trys' of Retry: did you mean 'tries'"):
        Retry.of({"trys": 2})


def test_an_unknown_option_is_logged_with_the_one_that_may_be_meant(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"confirm_publsh": True, "colour": "green", "max_retries": 3, "confirm_timeout": 5}
    known_options(MemoryOptions, given, "memory://", logging.getLogger("greenconn.transport"))
    assert [record.message for record in caplog.records] == [
        "memory://: unknown transport options are ignored: 'colour', "
        "'confirm_publsh' (did you mean 'confirm_publish'?)"
    ]


def test_from_transport_options() -> None:
    options, unknown = from_transport_options(
        AmqpOptions, {"confirm_publish": True, "max_retries": 3, "x": None}
    )
    assert options == AmqpOptions(confirm_publish=True)
    assert unknown == ("max_retries", "x")
    assert from_transport_options(MemoryOptions, {}) == (MemoryOptions(), ())


def test_types_of_options_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection with options in its URL took a hundred times as long as one without."""
    query_types(AmqpOptions)
    monkeypatch.setattr("greenconn.options.get_type_hints", pytest.fail)
    query_types(AmqpOptions)


def test_query_types() -> None:
    known = query_types(AmqpOptions)
    assert known["confirm_timeout"] == (float | None)
    assert known["confirm_publish"] is bool
    assert "on_blocked" not in known
    assert "client_properties" not in known


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", True),
        ("0", False),
        ("true", True),
        ("False", False),
        ("YES", True),
        ("no", False),
        ("on", True),
        ("off", False),
    ],
)
def test_booleans(text: str, value: bool) -> None:
    assert typed_query({"ssl": text}, CONNECTION_QUERY) == {"ssl": value}


@pytest.mark.parametrize(
    ("text", "value"), [("10", 10), ("2.5", 2.5), ("0", 0), ("1e1", 10.0), (" 3 ", 3)]
)
def test_numbers(text: str, value: float) -> None:
    typed = typed_query({"heartbeat": text}, CONNECTION_QUERY)
    assert typed == {"heartbeat": value}
    assert typed["heartbeat"] is not BROKER_HEARTBEAT


def test_text_and_none() -> None:
    query = {"login_method": "PLAIN", "connect_timeout": "None", "ssl_ca_certs": "none"}
    assert typed_query(query, CONNECTION_QUERY) == {
        "login_method": "PLAIN",
        "connect_timeout": None,
        "ssl_ca_certs": "none",
    }
    assert typed_query({}, {}) == {}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (
            {"ssl": "maybe"},
            "URL option ssl must be one of 1, 0, true, false, yes, no, on, off, got 'maybe'$",
        ),
        ({"ssl": ""}, "ssl must be .* got ''$"),
        ({"heartbeat": "ten"}, "heartbeat must be a number, got 'ten'$"),
        ({"heartbeat": "nan"}, "heartbeat must be .* got 'nan'"),
        ({"heartbeat": "1_0"}, "heartbeat must be .* got '1_0'"),
        ({"heartbeat": "none"}, "heartbeat must be .* got 'none'"),
        ({"connect_timeout": "x"}, "must be a number, or none, got 'x'$"),
        ({"channel_max": "1.5"}, "channel_max must be an integer, or none, got '1.5'$"),
        ({"heartbeet": "10"}, r"option 'heartbeet' in the URL: did you mean 'heartbeat'\?$"),
        ({"zzz": "1"}, r"option 'zzz' in the URL: known: .*heartbeat.*ssl"),
    ],
)
def test_query_that_is_refused(query: dict[str, str], said: str) -> None:
    known = {**CONNECTION_QUERY, **query_types(AmqpOptions)}
    known["heartbeat"] = float
    with pytest.raises(ValueError, match=said):
        typed_query(query, known)


def test_unknown_option_keeps_its_secret() -> None:
    with pytest.raises(ValueError, match="unknown option 'sentinel_kwargs'") as raised:
        typed_query({"sentinel_kwargs": "{'x': 'SECRET'}"}, CONNECTION_QUERY)
    assert "SECRET" not in str(raised.value)


@given(st.floats(0, 1e6) | st.integers(0, 10**9))
@settings(derandomize=True)
def test_number_round_trip(number: float) -> None:
    assert typed_query({"heartbeat": str(number)}, CONNECTION_QUERY) == {"heartbeat": number}
