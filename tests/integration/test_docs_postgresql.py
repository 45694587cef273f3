"""Every code block of the page about PostgreSQL runs, and its rights suffice."""

from __future__ import annotations

import re

import psycopg
import pytest

import greenconn
from greenconn import Connection, Queue
from greenconn.cli import main
from greenconn.transport.postgresql.schema import VERSION
from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT

PAGE = (ROOT / "docs" / "postgresql.rst").read_text()


@pytest.mark.full
def test_the_code_blocks_run(postgresql_url: str, patched: bool) -> None:
    assert not run_blocks(PAGE, postgresql_url, patched).stderr


def statements(beginning: str) -> list[str]:
    """Return the statements of the page that begin so."""
    return re.findall(rf"^    ({beginning}\b.*?);$", PAGE, re.MULTILINE | re.DOTALL)


def test_its_queries_for_watching_run(
    postgresql_url: str, postgresql: psycopg.Connection[object], unique: str
) -> None:
    with Connection(postgresql_url) as connection:
        greenconn.publish(Queue("mail"), 1, connection=connection)
    waiting, tables = statements("SELECT")
    rows = postgresql.execute(waiting.replace("greenconn.", f'"{unique}".')).fetchall()
    assert rows == [("mail", 1, 0, 0)]
    assert postgresql.execute(tables).fetchall()


def test_the_rights_that_it_names_suffice(
    postgresql_server: str, postgresql: psycopg.Connection[object], unique: str
) -> None:
    assert main(["postgres", "migrate", postgresql_server, "--schema", unique]) == 0
    name = f'"{unique}"'
    web, worker = f"{unique}-web", f"{unique}-worker"
    for role in (web, worker):
        postgresql.execute(f'CREATE ROLE "{role}" LOGIN')
        postgresql.execute(f'GRANT USAGE ON SCHEMA {name} TO "{role}"')
        postgresql.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO "{role}"')
    for grant in statements("GRANT"):
        text = grant.replace("greenconn.", f"{name}.").replace("SCHEMA greenconn", f"SCHEMA {name}")
        text = re.sub(r"TO (\w+)$", lambda found: f'TO "{unique}-{found[1]}"', text)
        postgresql.execute(text)
    place = postgresql_server.partition("@")[2]
    try:
        with Connection(f"postgresql://{worker}@{place}?schema={unique}") as consuming:
            queue = Queue("mail", channel=consuming.default_channel)
            queue.declare()
            with Connection(f"postgresql://{web}@{place}?schema={unique}") as connection:
                greenconn.publish("mail", 1, connection=connection)
                with psycopg.connect(f"postgresql://{web}@{place}") as program:
                    greenconn.publish("mail", 2, connection=connection, transaction=program)
            for number in (1, 2):
                message = queue.get()
                assert message is not None
                assert message.payload == number
                message.ack()
    finally:
        postgresql.execute(f"DROP SCHEMA {name} CASCADE")
        for role in (web, worker):
            postgresql.execute(f'DROP OWNED BY "{role}"')
            postgresql.execute(f'DROP ROLE "{role}"')


def test_migrations_as_sql(
    postgresql_server: str,
    postgresql: psycopg.Connection[object],
    unique: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["postgres", "migrate", "--sql", "--schema", unique]) == 0
    sql = capsys.readouterr().out
    assert sql.startswith("BEGIN;\nCREATE SCHEMA")
    try:
        postgresql.execute(sql)
        assert main(["postgres", "migrate", postgresql_server, "--schema", unique]) == 0
        assert capsys.readouterr().out == f"schema {unique}: version {VERSION}\n"
    finally:
        postgresql.execute(f'DROP SCHEMA "{unique}" CASCADE')
    assert main(["postgres", "migrate", "memory://"]) == 2
    assert "must be of PostgreSQL" in capsys.readouterr().err
    assert main(["postgres", "migrate", "--sql", "--from", "99"]) == 2
    assert main(["postgres", "migrate", "memory://", "--from", "1"]) == 2
