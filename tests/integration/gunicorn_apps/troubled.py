"""The shop, with requests that take long: one that waits, and one that computes."""

from __future__ import annotations

import os

import greenconn
from greenconn import Connection
from tests.integration.gunicorn_apps import web_shop as shop


@shop.app.get("/late")
def late() -> str:
    """Publish when told to."""
    greenconn.publish(shop.SHIPPED, {"id": "begun", "by": 0})
    url = os.environ["GREENCONN_URL"]
    with Connection(url) as connection, connection.SimpleQueue(f"{shop.PREFIX}-go") as queue:
        queue.get(timeout=30).ack()
    greenconn.publish(shop.SHIPPED, {"id": "late", "by": 0})
    return "published"


@shop.app.get("/forever")
def forever() -> str:
    """Give nobody else a turn."""
    while True:
        pass


application = shop.application
