"""The transport options of CouchDB."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.transport.couchdb import CouchOptions


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"feed_heartbeat": 0.05}, "feed_heartbeat must be a number of seconds, at least 0.1"),
        ({"feed_heartbeat": "x"}, "feed_heartbeat must be"),
        ({"max_http_connections": 0}, "max_http_connections must be"),
    ],
)
def test_values_that_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        CouchOptions(**options)
