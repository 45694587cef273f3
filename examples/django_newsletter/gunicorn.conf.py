"""gunicorn's settings: each worker runs the consumers beside its requests."""

from greenconn.contrib.gunicorn import hooks

wsgi_app = "newsletter.wsgi:application"
worker_class = "gevent"
workers = 2
graceful_timeout = 20  # for requests and handlers
globals().update(hooks("subscribers.consumers:app"))
