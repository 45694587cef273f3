"""gunicorn's settings."""

from greenconn.contrib.gunicorn import hooks

wsgi_app = "chat:app"
worker_class = "gevent"
workers = 2
graceful_timeout = 3  # websockets do not end by themselves: each worker waits so long for them
globals().update(hooks())
