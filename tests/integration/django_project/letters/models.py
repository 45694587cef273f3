"""Letters, and whether they were sent."""

from __future__ import annotations

from django.db import models


class Letter(models.Model):
    """One letter."""

    text = models.TextField(unique=True)
    is_sent = models.BooleanField(default=False)
