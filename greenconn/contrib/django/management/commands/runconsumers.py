"""``manage.py runconsumers``: run the consumers, RPC servers and tasks of the project."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.utils.module_loading import autodiscover_modules

from greenconn.contrib.django import ProgramCommand, app
from greenconn.service.app import App


class Command(ProgramCommand):
    """The command."""

    help = (
        "Runs the consumers that the project's applications declare in their modules 'consumers', and "
        "the tasks of the backends in TASKS that are greenconn's."
    )

    def load(self, **options: Any) -> App:
        """Return the project's application, after its modules ``consumers`` were imported."""
        autodiscover_modules("consumers")
        frameworks = ("django.tasks", "django_tasks")
        if getattr(settings, "TASKS", None) and any(map(find_spec, frameworks)):
            from greenconn.contrib.django.tasks import declare_consumers

            declare_consumers(app)
        return app
