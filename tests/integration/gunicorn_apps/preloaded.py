"""The shop, by somebody who does too much before the workers are forked."""

from __future__ import annotations

import shop

import greenconn

greenconn.publish(shop.ORDERS, {"id": "from-the-arbiter", "item": "teapot"})
greenconn.publish(shop.NEWS, {"what": "began", "id": "", "by": 0}, mandatory=False)
greenconn.spawn_consumer("never-in-the-workers", print)
application = shop.application
