"""``manage.py runconsumers``: run the consumers and RPC servers of the project."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import autodiscover_modules

from greenconn.contrib.django import ProgramCommand, app
from greenconn.service.app import App


class Command(ProgramCommand):
    """The command."""

    help = (
        "Runs the consumers that the project's applications declare in their modules 'consumers'."
    )

    def load(self, **options: Any) -> App:
        """Return the project's application, after its modules ``consumers`` were imported."""
        autodiscover_modules("consumers")
        return app
