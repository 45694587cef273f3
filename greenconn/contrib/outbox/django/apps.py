"""The app for ``INSTALLED_APPS``."""

from __future__ import annotations

from django.apps import AppConfig

from greenconn.contrib.outbox.django import LABEL


class OutboxConfig(AppConfig):
    """The tables of the outbox."""

    name = "greenconn.contrib.outbox.django"
    label = LABEL
    verbose_name = "Outbox"
    default_auto_field = "django.db.models.BigAutoField"
