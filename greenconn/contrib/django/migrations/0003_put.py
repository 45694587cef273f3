"""Version 3 of the tables of a broker in PostgreSQL."""

from __future__ import annotations

from django.db import migrations

from greenconn.contrib.django.migrations import MigrateSchema


class Migration(migrations.Migration):
    """Adds the procedure that stores a message."""

    dependencies = (("greenconn", "0002_limits"),)

    operations = (MigrateSchema(3),)
