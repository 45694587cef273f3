"""The example of a Django shop on PostgreSQL: each accepted order gets one invoice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import gevent
import psycopg
import pytest

from tests.fix_postgresql import Database
from tests.fix_wires import until
from tests.integration.projects import SOON, Project, project

pytest.importorskip("django")
pytest.importorskip("gunicorn")

pytestmark = [pytest.mark.full, pytest.mark.programs, pytest.mark.timeout(600)]


class Shop:
    """The running example.

    Attributes:
        site: its processes.
        database: its database, each statement a transaction of its own.
    """

    def __init__(self, site: Project, database: Database) -> None:
        self.site = site
        self.database = database
        (self._port,) = site.wait_for(r"Listening at: http://[0-9.]+:(\d+)")
        site.wait_for("^consuming invoices", 2)

    def order(self, *items: str) -> list[int] | None:
        """Order a basket; return the numbers, or None if it was not accepted.  May switch."""
        form = [("address", "ada@example.org"), *(("item", item) for item in items)]
        try:
            answer = self.site.request(self._port, "/orders", body=urlencode(form).encode())
        except OSError:  # the server died of it
            return None
        if answer.status != 201:
            return None
        return list(answer.json["orders"])

    def numbers(self, table: str, column: str = "id") -> list[int]:
        rows = self.database.execute(
            f"SELECT {column}::int FROM shop_{table} ORDER BY 1"
        ).fetchall()
        return [int(str(number)) for (number,) in rows]

    def messages(self) -> int:
        """Return the number of messages that are not acknowledged."""
        return len(self.database.execute("SELECT id FROM greenconn.messages").fetchall())

    def check(self) -> None:
        """Wait until each order has its invoice, and one.  May switch."""
        until(lambda: not self.messages(), SOON, "all messages")
        assert self.numbers("invoice", "order_id") == self.numbers("order")

    def mails(self) -> int:
        texts = [path.read_text() for path in (self.site.folder / "mails").glob("*.log")]
        return len(re.findall("^To: ada@example.org$", "\n".join(texts), re.MULTILINE))


@pytest.fixture
def shop(postgresql_database: str, tmp_path: Path) -> Iterator[Shop]:
    url = f"{postgresql_database}?lease=3"  # what a killed consumer held comes sooner
    with (
        psycopg.connect(postgresql_database, autocommit=True) as database,
        project("django_shop", tmp_path, GREENCONN_URL=url) as site,
    ):
        yield Shop(site, database)


def test_an_order_and_its_message_are_one_transaction(shop: Shop) -> None:
    assert shop.order("tea", "milk") == [1, 2]
    assert shop.order("tea", "") is None  # rolled back after the first message was written
    assert shop.order("sugar") is not None
    shop.check()
    assert len(shop.numbers("order")) == 3
    assert shop.mails() == 3
    shop.site.stop()


def test_a_mail_that_fails_is_tried_again_with_its_invoice(shop: Shop) -> None:
    folder = shop.site.folder / "mails"
    folder.write_text("not a folder")
    assert shop.order("tea") == [1]
    shop.site.wait_for("failed in attempt 2 on delivery")
    assert shop.numbers("invoice") == []
    folder.unlink()
    shop.check()
    assert shop.mails() == 1


def test_killed_processes(shop: Shop) -> None:
    site = shop.site
    with psycopg.connect(shop.database.info.dsn) as other:
        other.execute("LOCK TABLE shop_invoice IN SHARE MODE")
        # As many as one process handles at once: it may be the one that gets them all.
        accepted = [shop.order(*items) for items in (("tea", "milk"), ("tea", "milk"), ("tea",))]
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'shop_invoice'::regclass"
        until(lambda: len(shop.database.execute(waiting).fetchall()) == 5, SOON, "all handlers")
        _, *consumers = site.processes("runconsumers")
        for each in consumers:
            site.kill(each)
        other.rollback()
    shop.check()
    assert len(shop.numbers("invoice")) == sum(len(each or ()) for each in accepted) == 5

    # And while there is much to do.
    requests = [gevent.spawn(shop.order, "tea") for _ in range(20)]
    until(lambda: len(shop.numbers("invoice")) > 6, SOON, "the first of them")
    site.kill(site.processes("runconsumers")[1])
    site.kill(site.processes("gunicorn")[1])
    numbers = {number for each in requests for number in each.get() or ()}
    shop.check()
    assert numbers <= {*shop.numbers("order")}
    site.stop()
