"""The web applications of the documentation, run by the servers that they are written for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.brokers.ports import free_ports
from tests.fix_wires import until
from tests.unit.test_docs import section

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
#: Seconds that a server may take for anything.
SOON = 60.0
#: The section whose application the others run, too.
EXAMPLE = "A complete example"
_FILE = re.compile(r"^    # (\w+(?:\.\w+)*\.py)\n((?:(?:    .*)?\n)+)", re.MULTILINE)
#: The end of the command that runs an application, from the name of the program on.
_COMMAND = re.compile(r"^    GREENCONN_URL=(\S+) ((?:.*\\\n)*.*)$", re.MULTILINE)

needs_uwsgi = pytest.mark.skipif(
    not (SCRIPTS / "uwsgi").exists(), reason="uwsgi is not installed: it needs a compiler"
)


@contextmanager
def served(title: str, folder: Path, *options: str) -> Iterator[tuple[str, Path]]:
    """Run the complete example as a section does; yield its address and the file of its output."""
    page = (ROOT / "docs" / "gunicorn.rst").read_text()
    text = section(page, title)
    for name, program in _FILE.findall(section(page, EXAMPLE) + text):
        (folder / name).write_text(re.sub(r"^    ", "", program, flags=re.MULTILINE))
    url, command = _COMMAND.findall(text)[0]
    (port,) = free_ports(1)
    words = command.replace("\\\n", "").replace("127.0.0.1:8000", f"127.0.0.1:{port}").split()
    output = folder / "output"
    with output.open("wb") as file:
        server = subprocess.Popen(
            [str(SCRIPTS / words[0]), *words[1:], *options],
            cwd=folder,
            env={**os.environ, "GREENCONN_URL": url, "GUNICORN_CMD_ARGS": f"-b 127.0.0.1:{port}"},
            stdout=file,
            stderr=file,
        )
    try:
        yield f"http://127.0.0.1:{port}/orders", output
        server.send_signal(signal.SIGTERM)
        assert server.wait(SOON) in (0, -signal.SIGTERM), output.read_text()
    finally:
        server.kill()
        server.wait()


def ordered(address: str, number: int) -> bool:
    """Whether the server accepts an order."""
    request = Request(address, b'{"id": %d}' % number, headers={"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=SOON) as answer:
            return bool(answer.read().strip() == b'{"is_accepted":true}')
    except URLError as exc:
        if isinstance(exc.reason, ConnectionRefusedError):
            return False
        raise


def check_orders(address: str, output: Path) -> None:
    """Order three things; each is shipped."""
    until(lambda: ordered(address, 1), SOON)
    assert ordered(address, 2)
    assert ordered(address, 3)
    shipped = {f"shipped order {number}" for number in (1, 2, 3)}
    until(lambda: shipped <= set(output.read_text().splitlines()), SOON)


def test_gunicorn(tmp_path: Path) -> None:
    with served(EXAMPLE, tmp_path) as (address, output):
        check_orders(address, output)
    assert "Traceback" not in output.read_text()


@needs_uwsgi
def test_uwsgi(tmp_path: Path) -> None:
    with served("uWSGI", tmp_path) as (address, output):
        check_orders(address, output)
    assert "Traceback" not in output.read_text()


@needs_uwsgi
def test_uwsgi_with_lazy_applications(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text("from wsgi import app, application\napp.start()\n")
    with served("uWSGI", tmp_path, "--lazy-apps", "--module", "lazy") as (address, output):
        check_orders(address, output)
    assert "Traceback" not in output.read_text()
