"""The application for gunicorn, with health probes at /health/live and /health/ready."""

import os

from django.core.wsgi import get_wsgi_application

from greenconn import health

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
application = health.Probes(get_wsgi_application())
