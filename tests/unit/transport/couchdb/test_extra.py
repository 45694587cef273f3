"""Without the extra, everything else works, and who wants CouchDB is told what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.programs

PROGRAM = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "geventhttpclient":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import greenconn
from greenconn import Connection

with Connection("memory://") as connection:
    greenconn.publish("q", "x", connection=connection, declare=True)
connection = Connection("couchdb://127.0.0.1:1/db")
try:
    connection.connect()
except ImportError as exc:
    print(exc)
"""


def test_the_error_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == (
        "geventhttpclient is not installed: pip install 'greenconn[couchdb]'\n"
    ), done.stderr
