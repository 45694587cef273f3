"""kombu's token bucket."""

from __future__ import annotations

import pytest

from greenconn import mixins as defining
from greenconn.utils import limits


def test_its_clock_is_replaced_in_kombus_module(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(limits, "monotonic", lambda: now[0])
    bucket = limits.TokenBucket(0.1)
    assert isinstance(bucket, defining.TokenBucket)
    assert bucket.timestamp == 1000.0
    assert bucket.can_consume()
    now[0] += 5.0
    assert not bucket.can_consume()
    assert bucket.expected_time() == 5.0
    now[0] += 5.0
    assert bucket.can_consume()
