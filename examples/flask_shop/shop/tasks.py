"""The worker: ``greenconn run shop.tasks --processes 2``."""

from __future__ import annotations

import logging
from typing import Any

import gevent
from sqlalchemy import update
from sqlalchemy.orm import Session

import greenconn
from shop.models import ORDERS, Order, engine

logger = logging.getLogger(__name__)
app = greenconn.App()


@app.consumer(ORDERS, concurrency=10, retry=greenconn.Retry(tries=5))
def ship(order: dict[str, Any], message: greenconn.Message) -> None:
    """Ship an order.

    It is acknowledged when this returns.  After a crash the order is delivered again, so this is
    idempotent: only the first transaction finds an order that is not shipped.
    """
    gevent.sleep(0.1)  # as packing would
    with Session(engine) as session, session.begin():
        to_ship = update(Order).where(Order.id == order["id"], Order.is_shipped.is_(False))
        shipped = session.scalar(to_ship.values(is_shipped=True).returning(Order.id))
    if shipped is None:
        logger.warning("order %s had been shipped before", order["id"])
    else:
        logger.info("shipped order %s", shipped)
