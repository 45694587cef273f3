"""Delays of messages: what is accepted, and how a delayed message is addressed."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.delays import checked_delay, delay_of, delayed_route, header_route

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(("given", "seconds"), [(None, None), (0, None), (0.0, None), (2, 2.0)])
def test_delay_is_seconds(given: Any, seconds: float | None) -> None:
    assert checked_delay(given) == seconds


@pytest.mark.parametrize("given", [-0.1, "1", True, float("inf"), float("nan")])
def test_wrong_delay(given: Any) -> None:
    with pytest.raises(ValueError, match="delay must be a number of seconds, at least 0 and at "):
        checked_delay(given)


def test_header_has_milliseconds_and_is_never_early() -> None:
    headers = {"a": 1}
    route = header_route("x", "k", 0.0012, headers)
    assert (route.exchange, route.routing_key) == ("x", "k")
    assert route.headers == {"a": 1, "x-delay": 2}
    assert headers == {"a": 1}
    assert delay_of(route.headers) == 0.002


def test_channel_without_delays_is_named() -> None:
    class Channel:
        pass

    channel: Any = Channel()
    with pytest.raises(ValueError, match=r"delay must be None on this transport.*Channel\), got 3"):
        delayed_route(channel, "", "q", 3.0, None, {})
