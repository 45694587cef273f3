"""An application in tests of Django: ``publish_on_commit``, the testing kit and Django's classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.processes import run

pytest.importorskip("django")

#: A handler that reads what the view has written.
PROGRAM = """
import sys
case, folder, is_patched = sys.argv[1:]
if is_patched == "True":
    from gevent import monkey; monkey.patch_all()
import django
from django import test
from django.conf import settings

settings.configure(
    DATABASES={"default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"{folder}/used.db", "TEST": {"NAME": f"{folder}/tests.db"},
    }},
    INSTALLED_APPS=["django.contrib.contenttypes", "greenconn.contrib.django"],
)
django.setup()
from django.contrib.contenttypes.models import ContentType as Order
from django.db import transaction
from django.test.runner import DiscoverRunner
from greenconn import App
from greenconn.contrib.django import publish_on_commit

app = App()
seen = []


@app.consumer("orders")
def ship(body, message):
    seen.append(Order.objects.get(pk=body["id"]).model)


class Tests(getattr(test, case)):
    def setUp(self):
        self.kit = app.testing()
        self.broker = self.kit.__enter__()
        self.addCleanup(self.kit.__exit__, None, None, None)

    def order(self):
        with transaction.atomic():
            order = Order.objects.create(app_label="shop", model="book")
            publish_on_commit("orders", {"id": order.pk})
            assert self.broker.count("orders") == 0

    def test_ship(self):
        if case == "TestCase":
            with self.captureOnCommitCallbacks(execute=True):
                self.order()
        else:
            self.order()
        self.broker.run_until_idle()
        self.assertEqual(self.broker.failures("orders"), [])
        self.assertEqual(seen, ["book"])


runner = DiscoverRunner(verbosity=0)
suite = runner.build_suite(["__main__"])
old = runner.setup_databases()
failures = runner.suite_result(suite, runner.run_suite(suite))
runner.teardown_databases(old)
print("failures", failures)
"""


@pytest.mark.parametrize(
    ("case", "is_patched"),
    [("TestCase", False), ("TransactionTestCase", False), ("TransactionTestCase", True)],
)
@pytest.mark.sampled(2)
def test_handler_reads_what_was_committed(case: str, is_patched: bool, tmp_path: Path) -> None:
    done = run("-W", "ignore", "-c", PROGRAM, case, str(tmp_path), str(is_patched))
    assert done.code == 0, done.errors
    assert "failures 0" in done.output, done.errors
