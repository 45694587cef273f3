"""Names and keys of delayed delivery; what needs a broker is in the integration tests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import native_delayed_delivery as kombu_module

from greenconn.transport import native_delayed_delivery as module
from greenconn.transport.native_delayed_delivery import calculate_routing_key, level_name


@pytest.mark.parametrize("prefix", [None, "", "mine"])
@pytest.mark.parametrize("level", [0, 1, 27])
def test_levels_are_named_as_kombu_names_them(level: int, prefix: str | None) -> None:
    assert level_name(level, prefix) == kombu_module.level_name(level, prefix)


@given(st.integers(1, 2**28 - 1), st.text("abc.#*", min_size=1, max_size=100))
def test_the_key_is_kombus(countdown: int, key: str) -> None:
    assert calculate_routing_key(countdown, key) == kombu_module.calculate_routing_key(
        countdown, key
    )


@given(st.integers(1, 2**28 - 1), st.integers(1, 2**28 - 1))
def test_a_key_that_is_delayed_again_does_not_grow(first: int, second: int) -> None:
    once = calculate_routing_key(first, "mail.new")
    assert calculate_routing_key(second, once) == calculate_routing_key(second, "mail.new")


@given(st.integers(1, 2**28 - 1))
def test_the_digits_are_the_delay(countdown: int) -> None:
    digits = calculate_routing_key(countdown, "key").split(".")[:-1]
    assert len(digits) == module.MAX_NUMBER_OF_BITS_TO_USE
    assert (
        sum(2**level for level, digit in enumerate(reversed(digits)) if digit == "1") == countdown
    )


@pytest.mark.parametrize(
    ("countdown", "key", "words"),
    [
        (0, "key", "from 1 to 268435455 seconds"),
        (-5, "key", "from 1 to 268435455 seconds"),
        (2**28, "key", "got 268435456"),
        (1, "", "needs it"),
        (1, "x" * 200, "more than 255 bytes"),
    ],
)
def test_what_cannot_be_delayed(countdown: int, key: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        calculate_routing_key(countdown, key)


def test_the_queue_type_is_checked_before_anything_is_declared() -> None:
    never_used: Any = None
    with pytest.raises(ValueError, match="'classic' or 'quorum'"):
        module.declare_native_delayed_delivery_exchanges_and_queues(never_used, "stream")
