"""A program whose application is instrumented; prints what it would send to Sentry."""

from __future__ import annotations

import sys

if sys.argv[2] == "patched":
    from gevent import monkey

    monkey.patch_all()

import json
import os
from typing import Any

import gevent
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

import greenconn
from greenconn import App, Message
from greenconn.contrib.sentry import instrument


class Kept(Transport):
    """Prints instead of sending."""

    def capture_envelope(self, envelope: Envelope) -> None:
        """Print the items of an envelope."""
        for item in envelope.items:
            print(json.dumps(item.payload.json), flush=True)


sentry_sdk.init(dsn="https://key@sentry.invalid/1", transport=Kept, traces_sample_rate=1.0)
app = App(f"memory://ada:{os.environ['SENTRY_TEST_PASSWORD']}@localhost/{sys.argv[1]}")
instrument(app)


@app.consumer(greenconn.Queue("orders"))
def ship(body: Any, message: Message) -> None:
    """Publish one more message, or fail."""
    if body == "wrong":
        raise LookupError("there is no such order")
    if body == "old":
        raise greenconn.Discard("the order is old")
    app.publish(greenconn.Queue("mail"), "shipped")


@app.rpc(greenconn.Queue("add"))
def add(numbers: Any) -> Any:
    """Add numbers."""
    return sum(numbers)


app.start()
with sentry_sdk.start_transaction(op="http.server", name="/order"):
    app.publish(greenconn.Queue("orders"), "right", message_id="m1")
app.publish(greenconn.Queue("orders"), "wrong", message_id="m2")
app.publish(greenconn.Queue("orders"), "old")
assert app.call(greenconn.Queue("add"), [1, 2]) == 3
while sum(app.consumers[0].stats()[name] for name in ("handled", "failed", "discarded")) < 3:
    gevent.sleep(0.01)
app.stop(10)
sentry_sdk.flush()
