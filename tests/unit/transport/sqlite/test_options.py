"""The transport options of SQLite."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.transport.sqlite.database import SqliteOptions


def test_values_that_are_taken() -> None:
    assert SqliteOptions(synchronous="full", reserve=0, busy_timeout=0).reserve == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"synchronous": "OFF"}, "synchronous must be one of NORMAL, FULL, got 'OFF'"),
        ({"synchronous": 1}, "synchronous must be"),
        ({"reserve": -1}, "reserve must be"),
        ({"busy_timeout": -1}, "busy_timeout must be"),
    ],
)
def test_values_that_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SqliteOptions(**options)
