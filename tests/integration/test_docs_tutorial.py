"""The tutorial, followed step by step."""

from __future__ import annotations

import os
import re
import signal
import subprocess  # gevent's would take the end of every child
import sys
from pathlib import Path

import pytest

from tests.fix_wires import until
from tests.interpreter import printed

pytestmark = pytest.mark.programs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.rst"
#: Seconds that any step may take.
SOON = 60.0
_FILE = re.compile(r"^    # (\w+\.py)\n((?:(?:    .*)?\n)+)", re.MULTILINE)
_REPAIRED = re.compile(r"^    (def send_mail.*\n(?:        .*\n)+)", re.MULTILINE)


def test_its_steps_do_what_it_says(tmp_path: Path) -> None:
    page = PAGE.read_text()
    env = {**os.environ, "GREENCONN_URL": f"sqlite:///{tmp_path}/tutorial.db"}
    for name, program in _FILE.findall(page):
        (tmp_path / name).write_text(re.sub(r"^    ", "", program, flags=re.MULTILINE))

    def run(*words: str) -> str:
        assert f"    {' '.join(words)}\n" in page
        arguments = words[1:] if words[0] == "python" else ("-m", "greenconn", *words[1:])
        return printed(*arguments, cwd=tmp_path, env=env, timeout=SOON)

    def consume(number: int) -> subprocess.Popen[bytes]:
        with (tmp_path / f"log{number}").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "greenconn", "run", "tasks"],
                cwd=tmp_path,
                env=env,
                stdout=log,
                stderr=log,
            )

    def is_logged(number: int, *texts: str) -> bool:
        log = (tmp_path / f"log{number}").read_text()
        return all(text in log for text in texts)

    assert run("python", "sign_up.py", "ada@example.org") == "accepted ada@example.org\n"
    consumer = consume(1)
    try:
        until(lambda: is_logged(1, "mail to ada@example.org\n"), SOON)
        run("python", "sign_up.py", "grace@example.org", "alan@example.org")
        until(lambda: is_logged(1, "to grace@example.org\n", "to alan@example.org\n"), SOON)
        run("python", "sign_up.py", "nobody")
        until(lambda: is_logged(1, "the message is moved to queue 'mail.dead'"), SOON)
        until(lambda: "not an address: nobody" in run("greenconn", "dead", "look", "mail"))
        consumer.send_signal(signal.SIGINT)
        assert consumer.wait(SOON) == 0
        [repaired] = [each for each in _REPAIRED.findall(page) if "address = " in each]
        tasks = tmp_path / "tasks.py"
        text = tasks.read_text()
        tasks.write_text(
            text[: text.index("def send_mail")] + re.sub("^    ", "", repaired, flags=re.MULTILINE)
        )
        consumer = consume(2)
        run("greenconn", "dead", "replay", "mail")
        until(lambda: is_logged(2, "mail to nobody@example.org\n"), SOON)
        assert "1 passed" in run("python", "-m", "pytest", "-q", "test_tasks.py")
    finally:
        consumer.kill()
        consumer.wait()
