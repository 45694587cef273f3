"""The app for ``INSTALLED_APPS``."""

from __future__ import annotations

from django.apps import AppConfig

from greenconn.contrib.django import configure


class GreenconnConfig(AppConfig):
    """Configures the default connections when Django starts; opens nothing."""

    name = "greenconn.contrib.django"
    label = "greenconn"

    def ready(self) -> None:
        """Read the settings."""
        configure()
