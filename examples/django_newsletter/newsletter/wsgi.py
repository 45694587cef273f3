"""The application for gunicorn, with health probes at /health/live and /health/ready."""

import os

from django.core.wsgi import get_wsgi_application

from greenconn.health import Probes

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "newsletter.settings")
application = Probes(get_wsgi_application())
