"""The options that all transports over a store have."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.broker.link import StoreOptions


def test_defaults() -> None:
    options = StoreOptions()
    assert (options.lease, options.reply_timeout, options.delivery_limit) == (30.0, 30.0, None)
    assert (options.dead_letter_queue, options.deadletter_queue) == (None, None)
    assert options.confirm_publish is False
    assert options.max_message_size == 512 * 1024 * 1024


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("lease", 0, "a number of seconds above 0"),
        ("lease", -1, "a number of seconds, at least 0"),
        ("lease", None, "a number of seconds, at least 0"),
        ("reply_timeout", "5", "a number of seconds, at least 0, or None"),
        ("delivery_limit", 0, "a positive integer, or None"),
        ("max_message_size", 0, "a positive integer"),
        ("max_message_size", None, "a positive integer"),
        ("dead_letter_queue", 5, "of type str, or None"),
        ("deadletter_queue", 5, "of type str, or None"),
        ("confirm_publish", "no", "of type bool"),
    ],
)
def test_what_cannot_be(option: str, value: Any, wanted: str) -> None:
    with pytest.raises(ValueError) as caught:
        StoreOptions(**{option: value})
    assert str(caught.value) == f"StoreOptions.{option} must be {wanted}, got {value!r}"


def test_what_may_be() -> None:
    options = StoreOptions(
        lease=0.1,
        reply_timeout=None,
        delivery_limit=1,
        max_message_size=1,
        dead_letter_queue="dead",
        deadletter_queue="lost",
        confirm_publish=True,
    )
    assert (options.lease, options.reply_timeout, options.delivery_limit) == (0.1, None, 1)
