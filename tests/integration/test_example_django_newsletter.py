"""The example of a Django project: each subscriber gets a mail, and nobody else does."""

from __future__ import annotations

import re
from pathlib import Path

import gevent
import pytest

from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until
from tests.integration.projects import SOON, Project, project

pytest.importorskip("django")
pytest.importorskip("gunicorn")

pytestmark = [pytest.mark.full, pytest.mark.programs, pytest.mark.timeout(600)]


def subscribe(site: Project, port: str, address: str) -> int:
    """Return the status, or 0 if the server died of it.  May switch."""
    try:
        return site.request(port, "/subscribers", {"address": address}).status
    except OSError:
        return 0


def mails(site: Project) -> list[str]:
    """Return the addresses of all mails."""
    texts = [path.read_text() for path in (site.folder / "mails").glob("*.log")]
    return re.findall("^To: (.*)$", "\n".join(texts), re.MULTILINE)


def test_each_subscriber_gets_a_mail(own_rabbitmq: RabbitMQ, unique: str, tmp_path: Path) -> None:
    url = own_rabbitmq.add_vhost(unique)
    with project("django_newsletter", tmp_path, GREENCONN_URL=url) as site:
        (port,) = site.wait_for(r"Listening at: http://[0-9.]+:(\d+)")
        addresses = [f"{number}@example.org" for number in range(25)]
        requests = [gevent.spawn(subscribe, site, port, each) for each in addresses[:20]]
        site.wait_for("^welcomed ")
        _, worker, _ = site.processes("gunicorn")
        *_, relay = site.processes("relayoutbox")
        site.kill(worker)
        site.kill(relay)
        own_rabbitmq.stop()
        statuses = [each.get() for each in requests]
        statuses += [subscribe(site, port, each) for each in addresses[20:]]
        assert {*statuses} <= {0, 201}
        own_rabbitmq.start()
        accepted = {each for each, status in zip(addresses, statuses, strict=True) if status}
        until(lambda: accepted <= {*mails(site)}, SOON, "all mails")

        # What is rolled back is not published.
        assert subscribe(site, port, addresses[-1]) == 400
        assert subscribe(site, port, "nonsense") == 400
        assert subscribe(site, port, "last@example.org") == 201
        until(lambda: "last@example.org" in mails(site), SOON, "the last mail")
        assert "nonsense" not in mails(site)
        assert mails(site).count(addresses[-1]) == 1
        site.stop()
    own_rabbitmq.delete_vhost(unique)
