"""A shop whose requests publish orders and ask for prices, and whose workers also handle both.

Each worker process runs three consumers, which ``gunicorn.conf.py`` starts.  An order is published
(the request goes on when the broker has it), its price comes by a call to whichever worker is free, and
it is shipped by a worker some time later; all workers are notified, so that the page of each shows
everything.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import gevent
from flask import Flask, Response, jsonify, render_template, request

import greenconn
from greenconn import Exchange, Message, Queue, Retry, health, rpc
from greenconn.exceptions import OperationalError

PREFIX = os.environ.get("SHOP_PREFIX", "shop")
ORDERS = Queue(f"{PREFIX}-orders")
PRICES = Queue(f"{PREFIX}-prices")
SHIPPED = Queue(f"{PREFIX}-shipped")
NEWS = Exchange(f"{PREFIX}-news", type="fanout")
#: Seconds that it takes to ship an order, and to wait for a price.
WORK = float(os.environ.get("SHOP_WORK", "0.02"))
REPLY_TIMEOUT = float(os.environ.get("SHOP_REPLY_TIMEOUT", "5"))

app = Flask(__name__)
#: What has happened lately, in all workers.
news: deque[dict[str, Any]] = deque(maxlen=50)


# What the workers do beside their requests


def price(order: dict[str, Any]) -> dict[str, Any]:
    """Return the price of an order."""
    return {"price": 3 * len(order["item"]), "by": os.getpid()}


def ship(order: dict[str, Any], message: Message) -> None:
    """Handle an order.  It is acknowledged when this returns, so after what it publishes is safe.

    After a crash the same order may come again: *SHIPPED* may have it twice, but never not at all.
    """
    gevent.sleep(WORK)
    done = {
        "id": order["id"],
        "by": os.getpid(),
        "again": bool(message.delivery_info["redelivered"]),
    }
    greenconn.publish(SHIPPED, done)
    greenconn.publish(NEWS, {"what": "shipped", **done}, mandatory=False)


def note(happened: dict[str, Any], message: Message) -> None:
    """Store what another worker, or this one, has published."""
    news.appendleft(happened)


def start_consumers() -> None:
    """Begin to work, once in each worker process."""
    mine = Queue(f"{PREFIX}-news-{greenconn.uuid()}", NEWS, exclusive=True, auto_delete=True)
    greenconn.spawn_consumer(mine, note, no_ack=True)
    rpc.spawn_server(PRICES, price, concurrency=50)
    greenconn.spawn_consumer(
        ORDERS, ship, concurrency=50, on_error="requeue", retry=Retry(tries=3, delay=0.2)
    )


# Requests


@app.post("/orders")
def order() -> tuple[Response, int]:
    """Take an order: 200 means that it will be shipped, whatever happens to this worker."""
    wanted = {"id": request.form.get("id") or greenconn.uuid(), "item": request.form["item"]}
    try:
        quoted = rpc.call(PRICES, wanted, timeout=REPLY_TIMEOUT)
        greenconn.publish(ORDERS, wanted, timeout=REPLY_TIMEOUT)
    except OperationalError as exc:
        return jsonify(error=str(exc)), 503
    return jsonify(id=wanted["id"], worker=os.getpid(), **quoted), 200


@app.get("/")
def page() -> str:
    """Show what happens."""
    return render_template("page.html", health=health.check(), news=list(news), pid=os.getpid())


#: Beside the pages: /health/live and /health/ready.
application = health.Probes(app, timeout=1.0)
