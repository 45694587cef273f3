"""Messages as kombu's transport writes them, by hand."""

from __future__ import annotations

import json
from base64 import b64encode
from itertools import count
from typing import Any

_tags = count()


def envelope(body: Any, queue: str) -> bytes:
    """A message to *queue*, with a delivery tag that no other has in this process."""
    properties = {
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": f"00000000-0000-4000-a000-{next(_tags):012x}",
    }
    return json.dumps(
        {
            "body": b64encode(json.dumps(body).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {},
            "properties": properties,
        }
    ).encode()
