"""The tables of a broker in PostgreSQL."""

from __future__ import annotations

from django.db import migrations

from greenconn.contrib.django.migrations import MigrateSchema


class Migration(migrations.Migration):
    """Creates the tables, what limits and unique messages share, and the procedure that publishes."""

    initial = True

    dependencies = ()

    operations = (MigrateSchema(1), MigrateSchema(2), MigrateSchema(3))
