"""The shop, with consumers that begin with the module: gunicorn is given no hook at all."""

from __future__ import annotations

import shop

shop.start_consumers()
application = shop.application
