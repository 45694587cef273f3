"""The shop, by somebody who does too much before the workers are forked."""

from __future__ import annotations

import greenconn
from tests.integration.gunicorn_apps import web_shop as shop

greenconn.publish(shop.ORDERS, {"id": "from-the-arbiter", "item": "teapot"})
greenconn.publish(shop.NEWS, {"what": "began", "id": "", "by": 0}, mandatory=False)
greenconn.spawn_consumer("never-in-the-workers", print)
application = shop.application
