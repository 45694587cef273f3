"""The settings of the Django project that tests of one process share."""

from __future__ import annotations

import sys

import django
from django.conf import settings

BACKEND = "greenconn.contrib.django.tasks.Backend"
#: Where it is installed, Django has no tasks of its own.
BACKPORT = ["django_tasks"] if django.VERSION < (6, 0) and sys.version_info < (3, 12) else []


def configure_django() -> None:
    """Set up the project, unless another test has."""
    if not settings.configured:
        settings.configure(
            INSTALLED_APPS=[*BACKPORT, "greenconn.contrib.outbox.django"],
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
            TASKS={"default": {"BACKEND": BACKEND}},
            USE_TZ=True,
        )
        django.setup()
