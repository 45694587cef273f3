"""What gunicorn serves."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from greenconn import health

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = health.Probes(get_wsgi_application(), timeout=1.0)
