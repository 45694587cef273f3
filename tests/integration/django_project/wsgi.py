"""What gunicorn serves."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from greenconn.health import Probes

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = Probes(get_wsgi_application(), timeout=1.0)
