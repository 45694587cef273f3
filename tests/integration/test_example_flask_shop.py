"""The example of a Flask shop: an accepted order is shipped, once."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest

from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until
from tests.integration.projects import SOON, Project, project

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytest.importorskip("sqlalchemy")

pytestmark = [pytest.mark.full, pytest.mark.programs, pytest.mark.timeout(600)]

LISTENING = r"Listening at: http://[0-9.]+:(\d+)"
SHIPPED = r"shipped order (\d+)$"
#: An order that a worker had shipped when it was killed, before it could log that.
KNOWN = r"order (\d+) had been shipped before$"


def order(shop: Project, port: str) -> str | None:
    """Order a teapot, and return the id, or None if the server died of it.  May switch."""
    try:
        answer = shop.request(port, "/orders", {"item": "teapot"})
    except OSError:
        return None
    assert answer.status == 201, answer.body
    return str(answer.json["id"])


def all_shipped(shop: Project, accepted: set[str | None]) -> None:
    """Wait until all accepted orders were shipped, each once.  May switch."""

    def shipped() -> set[str]:
        return {*shop.find(SHIPPED), *shop.find(KNOWN)}

    until(lambda: accepted - {None} <= shipped(), SOON, "all orders")
    assert len(shop.find(SHIPPED)) == len({*shop.find(SHIPPED)})


def test_each_accepted_order_is_shipped_once(
    own_rabbitmq: RabbitMQ, unique: str, tmp_path: Path
) -> None:
    url = own_rabbitmq.add_vhost(unique)
    with project("flask_shop", tmp_path, GREENCONN_URL=url) as shop:
        (port,) = shop.wait_for(LISTENING)
        orders = [gevent.spawn(order, shop, port) for _ in range(20)]
        shop.wait_for(SHIPPED)
        _, worker, _ = shop.processes("greenconn run shop.tasks")
        _, web, _ = shop.processes("gunicorn")
        (relay,) = shop.processes("greenconn run shop.relay")
        for each in (worker, web, relay):
            shop.kill(each)
        own_rabbitmq.stop()
        accepted = {each.get() for each in orders}
        accepted |= {order(shop, port) for _ in range(5)}  # no broker, no relay
        own_rabbitmq.start()
        shop.start("greenconn run shop.relay")
        all_shipped(shop, accepted)
        page = shop.request(port, "/").body
        assert b": shipped" in page
        assert b": waiting" not in page

        # Stopped while orders are shipped, it ships the others later.
        accepted |= {order(shop, port) for _ in range(20)}
        shop.wait_for(SHIPPED, len(accepted - {None}) - 20 + 1)
        shop.stop()
        shop.start("sh run.sh")
        all_shipped(shop, accepted)
    own_rabbitmq.delete_vhost(unique)
