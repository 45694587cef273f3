"""gunicorn's settings."""

wsgi_app = "shop.wsgi:application"
worker_class = "gevent"
workers = 2
graceful_timeout = 20
