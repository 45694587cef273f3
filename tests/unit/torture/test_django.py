"""Each history begins with the state of a ``TestCase`` of Django, by a savepoint."""

from __future__ import annotations

from tests.integration.processes import run

#: Handlers that write to a table, and a test for each.
PROGRAM = """
import django
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.contenttypes"],
)
django.setup()
from django.contrib.contenttypes.models import ContentType
from django.test import TestCase
from django.test.runner import DiscoverRunner
from greenconn import App
from greenconn.torture import TortureFailure, torture

app = App()


@app.consumer("add")
def add(body, message):
    ContentType.objects.create(app_label="shop", model=body["name"])


@app.consumer("set")
def set_(body, message):
    ContentType.objects.get_or_create(app_label="shop", model=body["name"])


@app.consumer("together", transaction="default")
def together(body, message):
    ContentType.objects.create(app_label="shop", model=body["name"])
    ContentType.objects.create(app_label="shop", model=body["name"] + "-copy")


def rows():
    return ContentType.objects.filter(app_label="shop").count()


class Tests(TestCase):
    def setUp(self):
        ContentType.objects.create(app_label="shop", model="before")

    def tortured(self, queue, count):
        with torture(app, histories=60) as run:
            run.publish(queue, {"name": "order"})
            run.check(lambda: rows() == count)
        return run

    def test_add(self):
        with self.assertRaises(TortureFailure) as caught:
            self.tortured("add", 2)
        print(caught.exception.history)

    def test_set(self):
        self.tortured("set", 2)

    def test_together(self):
        print("points", self.tortured("together", 3).report.points)

    def tearDown(self):
        assert rows() == 1


runner = DiscoverRunner(verbosity=0)
suite = runner.build_suite(["__main__"])
old = runner.setup_databases()
print("failures", runner.suite_result(suite, runner.run_suite(suite)))
"""


def test_histories_are_savepoints() -> None:
    done = run("-W", "ignore", "-c", PROGRAM)
    assert done.code == 0, done.errors
    assert "failures 0" in done.output, done.errors
    assert "1: kill 1." in done.output
    assert "points" in done.output
