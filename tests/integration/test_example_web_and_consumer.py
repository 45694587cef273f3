"""The example of a web server and a consumer: no accepted mail is lost."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest

from tests.fix_wires import until
from tests.integration.projects import SOON, Project, project

pytestmark = [pytest.mark.programs, pytest.mark.timeout(600)]

MAILS = {f"{number}@example.org" for number in range(20)}


def send(web: Project, port: str, address: str) -> int:
    return web.request(port, "/mail", body=address.encode()).status


def test_a_killed_consumer_loses_no_mail(tmp_path: Path) -> None:
    url = "sqlite:///mail.db?lease=1"
    with project("web_and_consumer", tmp_path, GREENCONN_URL=url) as running:
        running.wait_for("^ready$")
        (port,) = running.wait_for(r"^http://127\.0\.0\.1:(\d+)/mail$")
        assert running.request(port, "/mail").status == 405
        assert send(running, port, "nonsense") == 400
        answers = [gevent.spawn(send, running, port, address) for address in MAILS]
        assert [each.get() for each in answers] == [202] * len(MAILS)
        running.wait_for("^mail to ", 5)
        (consumer,) = running.processes("consumer.py")
        running.kill(consumer)
        running.start("python consumer.py")
        until(lambda: {*running.find("^mail to (.*)$")} == MAILS, SOON, "all mails")
        running.stop()


def test_a_stopped_consumer_sends_what_it_has_begun(tmp_path: Path) -> None:
    with project("web_and_consumer", tmp_path) as running:
        running.wait_for("^ready$")
        (port,) = running.wait_for(r"^http://127\.0\.0\.1:(\d+)/mail$")
        for address in MAILS:
            assert send(running, port, address) == 202
        running.wait_for("^mail to ")
        running.stop()
        again = running.start("python consumer.py")
        until(lambda: {*running.find("^mail to (.*)$")} == MAILS, SOON, "all mails")
        assert len(running.find("^mail to ")) == len(MAILS)
        running.wait_for("^ready$", 2)
        again.terminate()
        assert running.wait(again) == 0
