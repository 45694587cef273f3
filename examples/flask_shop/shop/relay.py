"""The relay, which publishes the committed rows of the outbox: ``greenconn run shop.relay``."""

from __future__ import annotations

import greenconn
from shop.models import engine, outbox

app = greenconn.App()
app.service(outbox.relay(engine, publish=app.publish))
