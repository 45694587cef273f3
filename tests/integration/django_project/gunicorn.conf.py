"""gunicorn's settings for the project."""

from __future__ import annotations

from greenconn.contrib import gunicorn as green

worker_class = "gevent"
workers = 2
graceful_timeout = 20
globals().update(green.hooks("letters.consumers:app"))
