"""Version 1 of the tables of a broker in PostgreSQL."""

from __future__ import annotations

from django.db import migrations

from greenconn.contrib.django.migrations import MigrateSchema


class Migration(migrations.Migration):
    """Creates them."""

    initial = True

    dependencies = ()

    operations = (MigrateSchema(1),)
