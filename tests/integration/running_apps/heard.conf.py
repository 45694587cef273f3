"""gunicorn's settings for ``heard``."""

from greenconn.contrib.gunicorn import hooks

worker_class = "gevent"
workers = 3
preload_app = True
graceful_timeout = 20
globals().update(hooks("heard:app"))
