"""What is said where a package is not installed that a transport stands on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from greenconn.transport import TRANSPORT_ALIASES
from tests.interpreter import printed

ROOT = Path(__file__).resolve().parents[3]

#: Packages that extras bring for transports.
PACKAGES = ("botocore", "boto3", "pymongo", "bson", "kombu")

#: Alias -> its URL, the packages that it stands on, and the extra that brings them.
WITH_EXTRA = {
    "sqs": ("sqs://key:secret@127.0.0.1:9/", ("botocore",), "sqs"),
    "postgresql": ("postgresql://127.0.0.1:9/", ("psycopg",), "postgres"),
    "mongodb": ("mongodb://127.0.0.1:9/", ("pymongo",), "mongodb"),
}

#: Uses a connection in a process in which some packages cannot be imported.
PROGRAM = """
import json
import sys

url, missing = sys.argv[1], json.loads(sys.argv[2])

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import gevent
import greenconn

for use in (
    lambda: greenconn.Connection(url).connect(),
    lambda: greenconn.publish("mail", 1, connection=greenconn.Connection(url), timeout=60),
    lambda: greenconn.spawn_consumer("mail", print, connection=greenconn.Connection(url)).get(),
):
    try:
        with gevent.Timeout(60):
            use()
    except BaseException as exc:
        print(json.dumps([isinstance(exc, ImportError), type(exc).__name__, str(exc)]))
    else:
        print(json.dumps([False, "", ""]))
"""

IMPORTS = """
import json
import sys

missing = json.loads(sys.argv[1])

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from greenconn.transport import get_transport_cls

for alias in sys.argv[2:]:
    assert get_transport_cls(alias).driver_type, alias
print("all there")
"""


def run(program: str, *arguments: str) -> str:
    """Run a program and return what it prints."""
    return printed("-c", program, *arguments)


@pytest.mark.programs
@pytest.mark.parametrize(
    ("alias", "package"),
    [(alias, each) for alias, (_, packages, _) in WITH_EXTRA.items() for each in packages],
)
def test_the_extra_is_named(alias: str, package: str) -> None:
    url, _, extra = WITH_EXTRA[alias]
    answers = [json.loads(each) for each in run(PROGRAM, url, json.dumps([package])).splitlines()]
    assert len(answers) == 3
    for is_import_error, kind, text in answers:
        assert f"{package} is not installed: pip install 'greenconn[{extra}]'" in text, (kind, text)
        assert is_import_error, kind


@pytest.mark.programs
def test_the_others_need_nothing() -> None:
    without = sorted(each for each in TRANSPORT_ALIASES if each.lower() not in WITH_EXTRA)
    assert "beanstalk" in without
    assert "sqlite" in without
    assert run(IMPORTS, json.dumps(PACKAGES), *without) == "all there\n"
