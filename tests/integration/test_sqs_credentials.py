"""Logins to SQS: credentials that end, that are missing, and roles."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import gevent
import pytest

from greenconn import Connection, Queue
from greenconn.green.deadline import Deadline
from greenconn.transport.SQS.service import LoginRefused
from tests.brokers.moto import MotoServer
from tests.fix_peer import PeerFactory
from tests.integration.contract import SOON
from tests.integration.sqs_peer import Asked, Scripted, error, usual

pytestmark = pytest.mark.full


def test_new_credentials_are_asked_for_when_the_old_ones_have_ended(
    peer: PeerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come from a server in this hub: were it blocked meanwhile, nobody would answer."""
    given = 0

    def credentials(asked: Asked) -> Any:
        nonlocal given
        given += 1
        gevent.sleep(0.05)
        end = datetime.now(timezone.utc) + timedelta(hours=1)
        return {
            "AccessKeyId": f"AKIA{given}",
            "SecretAccessKey": "no-secret-at-all",
            "Token": "a-token",
            "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    machine = Scripted(peer, credentials)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{machine.peer.port}/login"
    )
    is_over = False

    def answer(asked: Asked) -> Any:
        if is_over and asked.access_key == "AKIA1":
            return error("ExpiredToken", 403)
        return usual(asked)

    server = Scripted(peer, answer)
    url = f"sqs://127.0.0.1:{server.peer.port}"
    with Connection(url, transport_options={"get_wait_time": 0}) as connection:
        producer = connection.Producer()
        producer.publish("x", routing_key="q")
        assert given == 1
        is_over = True
        jobs = [gevent.spawn(producer.publish, n, routing_key="q") for n in range(20)]
        gevent.joinall(jobs, raise_error=True)
        assert given == 2
        assert server.asked[-1].access_key == "AKIA2"
        assert server.asked[-1].headers["x-amz-security-token"] == "a-token"


def test_no_credentials(peer: PeerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = Scripted(peer, usual)
    with (
        Connection(f"sqs://127.0.0.1:{server.peer.port}") as connection,
        pytest.raises(LoginRefused, match="AWS_ACCESS_KEY_ID"),
    ):
        connection.ensure_connection(max_retries=1)


def test_a_process_for_credentials_may_fail_in_any_way(
    peer: PeerFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "config"
    config.write_text("[default]\ncredential_process = echo no JSON\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    server = Scripted(peer, usual)
    with (
        Connection(f"sqs://127.0.0.1:{server.peer.port}") as connection,
        pytest.raises(LoginRefused, match="JSONDecodeError"),
    ):
        connection.ensure_connection(max_retries=1)


def test_role_is_taken_on(moto: MotoServer, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto.endpoint)
    options = {"sts_role_arn": "arn:aws:iam::123456789012:role/mail", "get_wait_time": 0}
    with Connection(moto.url, transport_options=options) as connection:
        queue = Queue(unique)(connection.default_channel)
        queue.declare()
        connection.Producer().publish("x", routing_key=unique)
        message = queue.get(no_ack=True)
        assert message is not None
        login = connection.connection.store.queues.get(unique).service.login
        keys = login.keys(Deadline(SOON))
        assert keys.credentials.access_key.startswith("ASIA")
        assert keys.credentials.token
        assert not keys.ends_within(600)
        assert keys.ends_within(1000)
        queue.delete()
