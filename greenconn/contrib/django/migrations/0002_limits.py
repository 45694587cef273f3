"""Version 2 of the tables of a broker in PostgreSQL."""

from __future__ import annotations

from django.db import migrations

from greenconn.contrib.django.migrations import MigrateSchema


class Migration(migrations.Migration):
    """Adds what consumers with limits and unique messages share."""

    dependencies = (("greenconn", "0001_initial"),)

    operations = (MigrateSchema(2),)
