"""Every code block of the page about PostgreSQL runs, and its rights suffice."""

from __future__ import annotations

import os
import re
import signal
import subprocess  # gevent's would take the end of every child, the brokers' tools' too
import sys
from pathlib import Path
from textwrap import dedent

import psycopg
import pytest

import greenconn
from greenconn import Connection, Queue
from greenconn.cli import main
from greenconn.transport.postgresql.schema import VERSION
from tests.brokers.ports import free_ports
from tests.fix_wires import until
from tests.integration.gunicorn import fetch
from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT

#: Seconds that the programs may take for anything.
SOON = 90.0
PAGE = (ROOT / "docs" / "postgresql.rst").read_text()


@pytest.mark.full
def test_the_code_blocks_run(postgresql_url: str, patched: bool) -> None:
    assert not run_blocks(PAGE, postgresql_url, patched).stderr


_FILE = re.compile(r"^    # ([\w/]+\.py)\n((?:(?:    .*)?\n)+)", re.MULTILINE)
_COMMANDS = re.compile(r"[Rr]un it::\n\n((?:    .*\n)+)")
#: What Django makes of a new project, as far as it is needed.
_REST_OF_DJANGO = {
    "manage.py": """
import os, sys
from django.core.management import execute_from_command_line
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
execute_from_command_line(sys.argv)
""",
    "wsgi.py": """
import os
from django.core.wsgi import get_wsgi_application
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
application = get_wsgi_application()
""",
    "urls.py": """
from django.urls import path
from shop import views
urlpatterns = [path("orders", views.accept)]
""",
    "shop/__init__.py": "",
    "shop/migrations/__init__.py": "",
    "shop/models.py": """
from django.db import models
class Order(models.Model):
    item = models.TextField()
class Invoice(models.Model):
    order = models.ForeignKey(Order, on_delete=models.PROTECT)
    class Meta:
        db_table = "invoices"
""",
}
_SETTINGS = """
SECRET_KEY = "any"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""


@pytest.mark.full
@pytest.mark.parametrize("title", ["With Django", "With SQLAlchemy"])
def test_the_programs_run(title: str, postgresql_database: str, tmp_path: Path) -> None:
    section = PAGE.partition(f"{title}\n===")[2].partition("\n\n\n")[0]
    files = {name: dedent(text) for name, text in _FILE.findall(section)}
    before = ""
    if title == "With Django":
        files = {**_REST_OF_DJANGO, **files, "settings.py": files["settings.py"] + _SETTINGS}
        before = "python manage.py makemigrations -v 0 shop\n"
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (commands,) = _COMMANDS.findall(section)
    (port,) = free_ports(1)
    with (tmp_path / "log").open("wb") as log:
        shell = subprocess.Popen(
            ["sh", "-ec", before + dedent(commands)],
            cwd=tmp_path,
            env={
                **os.environ,
                "GREENCONN_URL": postgresql_database,
                "HOME": str(tmp_path),
                "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
                "PORT": str(port),
                "PYTHONPATH": str(ROOT),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        with psycopg.connect(postgresql_database, autocommit=True) as database:

            def has_accepted() -> bool:
                assert shell.poll() is None, (tmp_path / "log").read_text()
                try:
                    return fetch(port, "/orders", {"item": "tea"}).status == 201
                except OSError:
                    return False

            until(has_accepted, SOON, "an order")
            query = "SELECT count(*)::int FROM invoices"
            until(lambda: database.execute(query).fetchall() == [(1,)], SOON, "an invoice")
    except AssertionError:
        print((tmp_path / "log").read_text())
        raise
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


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
