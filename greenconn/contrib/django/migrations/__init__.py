"""The tables of a broker in the project's own PostgreSQL database.

``manage.py migrate`` creates them, and brings them up to date: each version of the schema is a migration
here.  They have no models.  Nothing is done in databases that are not PostgreSQL, or when the broker of
the settings is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import router
from django.db.migrations.operations.base import Operation

from greenconn.defaults import default_connection


class MigrateSchema(Operation):
    """Brings the tables to a version, however far they are: connections migrate them, too.

    Arguments:
        version: of the schema, from 1.
    """

    reduces_to_sql = True

    def __init__(self, version: int) -> None:
        self.version = version

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Do nothing: there are no models."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        self._migrate(app_label, schema_editor, self.version - 1, self.version)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        self._migrate(app_label, schema_editor, self.version, self.version - 1)

    def _migrate(self, app_label: str, schema_editor: Any, version: int, wanted: int) -> None:
        """Bring the tables to the version *wanted*, unless they are there or beyond.

        Arguments:
            version: that which ``manage.py sqlmigrate`` supposes.

        Raises:
            RuntimeError: the tables are of a later version than is known here.
        """
        database = schema_editor.connection
        if database.vendor != "postgresql" or not router.allow_migrate(database.alias, app_label):
            return
        transport = default_connection("publish").transport
        if transport.driver_type != "postgresql":
            return
        from greenconn.transport.postgresql import schema

        name = transport.options.schema
        if not schema_editor.collect_sql:
            with database.cursor() as cursor:

                def fetch(text: str) -> Sequence[Sequence[Any]]:
                    cursor.execute(schema.in_schema(name, text))
                    rows: Sequence[Sequence[Any]] = cursor.fetchall()
                    return rows

                # Until the end of Django's transaction.
                fetch(f"SELECT pg_advisory_xact_lock({schema.MIGRATION_LOCK})")
                found = schema.version_of(name, fetch)
            if found >= wanted if version < wanted else found <= wanted:
                return
            if found > schema.VERSION:
                raise RuntimeError(
                    f"schema {name!r} was created by a later version of greenconn (version {found}, "
                    f"known here up to {schema.VERSION}): upgrade greenconn in this program"
                )
            version = found
        for statement in schema.statements(name, version, wanted):
            schema_editor.execute(statement, params=None)

    def describe(self) -> str:
        """Return the text for ``manage.py migrate --plan``."""
        return f"Bring the tables of a broker in PostgreSQL to version {self.version}"
