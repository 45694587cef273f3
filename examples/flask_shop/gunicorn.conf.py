"""gunicorn's settings."""

wsgi_app = "shop.web:app"
worker_class = "gevent"
workers = 2
graceful_timeout = 20
