"""The shop, with consumers that begin with the module: gunicorn is given no hook at all."""

from __future__ import annotations

from tests.integration.gunicorn_apps import web_shop as shop

shop.start_consumers()
application = shop.application
