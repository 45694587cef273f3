"""``manage.py migrate`` creates the tables of a broker in the project's own PostgreSQL database."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import psycopg
import pytest

pytest.importorskip("django")

import greenconn
from greenconn import Connection, Queue
from greenconn.contrib.django import migrations
from greenconn.transport.postgresql.schema import MIGRATIONS, REVERSALS, VERSION
from tests.fix_postgresql import Database
from tests.integration.processes import ROOT, Outcome, run

pytestmark = [pytest.mark.programs]

MANAGE = str(ROOT / "tests" / "integration" / "django_project" / "manage.py")
#: Must be quoted.
SCHEMA = "the broker"


class Project:
    """A Django project in a database of PostgreSQL, which is its broker, too.

    Attributes:
        database: that database.
        broker: the URL of the broker.
    """

    def __init__(self, url: str, database: Database) -> None:
        self.database = database
        self.broker = f"{url}?schema=the+broker"
        self._url = url

    def try_to(self, *arguments: str, broker: str | None = None) -> Outcome:
        """Run ``manage.py``.  May switch."""
        env = {
            "LETTERS_DATABASE": self._url,
            "LETTERS_BROKER": broker or self.broker,
            "LETTERS_PREFIX": "any",
            "LETTERS_SETTINGS": "url",
            "PYTHONPATH": str(ROOT),
        }
        return run(MANAGE, *arguments, env=env)

    def manage(self, *arguments: str, broker: str | None = None) -> str:
        """Run ``manage.py``, and return what it has printed.  May switch."""
        outcome = self.try_to(*arguments, broker=broker)
        assert (outcome.code, outcome.errors) == (0, "")
        return outcome.output

    def publish(self) -> None:
        with Connection(self.broker) as connection:
            greenconn.publish(Queue("mail"), "letter", connection=connection)

    def count(self) -> int:
        """Return the number of messages."""
        rows = self.database.execute(f'SELECT count(*)::int FROM "{SCHEMA}".messages').fetchall()
        return int(str(rows[0][0]))

    def has_schema(self) -> bool:
        found = self.database.execute("SELECT to_regnamespace(%s)::text", (f'"{SCHEMA}"',))
        return found.fetchall() != [(None,)]


@pytest.fixture
def project(postgresql_database: str) -> Iterator[Project]:
    with psycopg.connect(postgresql_database, autocommit=True) as database:
        yield Project(postgresql_database, database)


def test_each_version_of_the_schema_has_a_migration_and_a_reversal() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules(migrations.__path__))
    modules = [importlib.import_module(f"{migrations.__name__}.{name}") for name in names]
    operations = [each for module in modules for each in module.Migration.operations]
    assert [each.version for each in operations] == list(range(1, VERSION + 1))
    assert len(REVERSALS) == len(MIGRATIONS)


@pytest.mark.full
def test_migrate_and_back(project: Project) -> None:
    assert "Bring the tables of a broker" in project.manage("migrate", "--plan")
    project.manage("migrate")
    assert project.has_schema()
    project.publish()
    project.manage("migrate")
    assert project.count() == 1
    project.manage("makemigrations", "--check", "greenconn")
    project.manage("migrate", "greenconn", "zero")
    assert not project.has_schema()
    project.manage("migrate")
    assert project.count() == 0


def test_tables_that_a_connection_has_created(project: Project) -> None:
    project.publish()
    project.manage("migrate")
    assert project.count() == 1
    # What is not greenconn's stays.
    project.database.execute(f'CREATE TABLE "{SCHEMA}".ours ()')
    project.manage("migrate", "greenconn", "zero")
    rows = project.database.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace", (f'"{SCHEMA}"',)
    )
    assert rows.fetchall() == [("ours",)]
    project.manage("migrate")
    project.publish()


@pytest.mark.full
def test_tables_of_a_later_version(project: Project) -> None:
    project.publish()
    project.database.execute(f'INSERT INTO "{SCHEMA}".migrations VALUES (99)')
    project.manage("migrate")
    outcome = project.try_to("migrate", "greenconn", "zero")
    assert outcome.code == 1
    assert "was created by a later version of greenconn (version 99, known here" in outcome.errors
    assert project.count() == 1


@pytest.mark.full
def test_another_broker_needs_no_tables(project: Project) -> None:
    project.manage("migrate", broker="memory://")
    rows = project.database.execute("SELECT to_regclass('queues'), to_regnamespace('greenconn')")
    assert rows.fetchall() == [(None, None)]
    assert not project.has_schema()
    # Moved to this one later: connections create them, or:
    for target in ([], ["zero"], []):
        project.manage("migrate", "greenconn", *target)
    assert project.has_schema()


@pytest.mark.full
def test_the_statements_can_be_read(project: Project) -> None:
    text = project.manage("sqlmigrate", "greenconn", "0001")
    assert text.count('CREATE TABLE "the broker".') == 9
    project.database.execute(text)
    project.publish()
    project.database.execute(project.manage("sqlmigrate", "--backwards", "greenconn", "0001"))
    assert not project.has_schema()
