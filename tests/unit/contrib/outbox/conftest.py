"""Outboxes of each kind, in SQLite or the database of ``GREENCONN_TEST_POSTGRESQL_URL``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("django")

from django.core.management import call_command
from django.db import connections, transaction
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import sessionmaker

from greenconn.contrib.outbox import OutboxStore
from greenconn.contrib.outbox.relay import Relay
from greenconn.contrib.outbox.sqlalchemy import Outbox
from tests.unit.contrib.projects import configure_django

#: A database that the tests may fill and empty; without it they have files of SQLite.
POSTGRESQL = os.environ.get("GREENCONN_TEST_POSTGRESQL_URL")


@dataclass
class Box:
    """An empty outbox.

    Attributes:
        publish: writes a message; called with a transaction first.
        begin: opens a transaction.
        relay: makes a relay.
        store: its tables.
        rows: returns all rows of the messages, by their ids.
    """

    publish: Callable[..., str]
    begin: Callable[[], AbstractContextManager[Any]]
    relay: Callable[..., Relay]
    store: OutboxStore
    rows: Callable[[], list[dict[str, Any]]]


def of_sqlalchemy(folder: Path, postgresql: str | None = POSTGRESQL) -> Iterator[Box]:
    engine = create_engine(postgresql or f"sqlite:///{folder}/outbox.sqlite")
    outbox = Outbox()
    tables = [outbox.leases, outbox.messages]
    outbox.messages.metadata.drop_all(engine, tables)
    outbox.create_tables(engine)

    def rows() -> list[dict[str, Any]]:
        query = outbox.messages.select().order_by(outbox.messages.c.id)
        with engine.connect() as connection:
            return [dict(each) for each in connection.execute(query).mappings()]

    def relay(**options: Any) -> Relay:
        return outbox.relay(engine, **options)

    store = relay()._store
    yield Box(outbox.publish, sessionmaker(engine).begin, relay, store, rows)
    engine.dispose()


def of_django(folder: Path, postgresql: str | None = POSTGRESQL) -> Iterator[Box]:
    name = f"{folder}/outbox.sqlite"
    given: dict[str, Any] = {"ENGINE": "django.db.backends.sqlite3", "NAME": name}
    if postgresql:
        url = make_url(postgresql)
        given = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.database,
            "USER": url.username,
            "PASSWORD": url.password or "",
            "HOST": url.host,
            "PORT": url.port,
        }
    configure_django()
    with suppress(AttributeError):
        del connections["default"]  # that of another test, to another database
    settings = connections.databases["default"]
    before = dict(settings)
    settings.update(given)
    from greenconn.contrib.outbox import django as outbox
    from greenconn.contrib.outbox.django.models import OutboxLease, OutboxMessage

    call_command("migrate", verbosity=0)
    OutboxMessage.objects.all().delete()
    OutboxLease.objects.all().delete()

    def publish(opened: object, *arguments: Any, **options: Any) -> str:
        return outbox.publish(*arguments, **options)

    def rows() -> list[dict[str, Any]]:
        return list(OutboxMessage.objects.order_by("id").values())

    yield Box(publish, transaction.atomic, outbox.relay, outbox.relay()._store, rows)
    connections.close_all()
    del connections["default"]
    settings.clear()
    settings.update(before)


@pytest.fixture(params=[of_sqlalchemy, of_django], ids=["sqlalchemy", "django"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Box]:
    """An empty outbox of each kind."""
    yield from request.param(tmp_path)
