"""``greenconn doctor`` before real brokers: what it says when all is well, and of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

import greenconn
from greenconn import Connection, Queue
from greenconn.cli import main
from tests.brokers.ports import free_ports
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.tls import CERTS
from tests.fix_brokers import RedisFactory
from tests.fix_postgresql import Database, PostgresServers
from tests.fix_tls import TlsFront
from tests.fix_wires import until

pytestmark = pytest.mark.halved

Found = dict[str, dict[str, Any]]


class Doctor:
    """Calls the command: ``doctor(url)`` returns the exit code, and what was found by check."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, url: str, *options: str) -> tuple[int, Found]:
        self._capfd.readouterr()
        code = main(["doctor", url, "--json", "--timeout", "20", *options])
        output, errors = self._capfd.readouterr()
        assert errors == ""
        report = json.loads(output)
        assert report["ok"] is (code == 0)
        found = [each for findings in report["checks"].values() for each in findings]
        return code, {each["check"]: each for each in found}


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capfd)


@pytest.fixture
def managed(managed_rabbitmq: RabbitMQ, doctor: Doctor) -> Iterator[str]:
    """The URL of a RabbitMQ with its management API; its alarms are off after the test."""
    url = f"{managed_rabbitmq.url}?manager_port={managed_rabbitmq.http_port}"
    yield url
    managed_rabbitmq.set_memory_alarm(False)
    # The management API says so some time later.
    until(lambda: not bad(doctor(url, "--read-only")[1]))


def bad(found: Found) -> dict[str, str]:
    """Return what is not well, by check."""
    return {
        name: each["outcome"]
        for name, each in found.items()
        if each["outcome"] not in ("ok", "note")
    }


def test_a_broker_that_is_well(doctor: Doctor, managed: str) -> None:
    code, found = doctor(managed)
    assert (code, bad(found)) == (0, {})
    assert "RabbitMQ" in found["login"]["text"]
    assert {"versions", "TCP", "heartbeat", "round trip", "message", "node"} <= found.keys()


def test_an_alarm(doctor: Doctor, managed: str, managed_rabbitmq: RabbitMQ) -> None:
    managed_rabbitmq.set_memory_alarm(True)
    until(lambda: "alarm" in doctor(managed, "--read-only")[1])
    code, found = doctor(managed, "--read-only")
    assert code == 1
    assert "memory alarm blocks all publishers" in found["alarm"]["text"]
    assert found["alarm"]["remedy"].startswith("consume")


def test_a_publish_during_an_alarm(
    managed: str, managed_rabbitmq: RabbitMQ, unique: str, capfd: pytest.CaptureFixture[str]
) -> None:
    managed_rabbitmq.set_memory_alarm(True)
    command = ["publish", f"{unique}-alarm", "x", "--declare", "--url", managed, "--timeout", "2"]
    assert main(command) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "blocks publishing (low on memory)" in line
    assert line.endswith("look at the broker's memory and disk alarms")


def test_queues(doctor: Doctor, managed: str, unique: str) -> None:
    def declare(name: str, **arguments: Any) -> str:
        queue = Queue(f"{unique}-{name}", queue_arguments=arguments, **durable)
        with Connection(managed) as connection:
            queue(connection.default_channel).declare()
        return queue.name

    durable: dict[str, Any] = {"durable": True, "auto_delete": False}
    quorum = {"x-queue-type": "quorum"}
    names = {
        "safe": declare("safe", **quorum, **{"x-dead-letter-exchange": "amq.fanout"}),
        "limited": declare("limited", **quorum, **{"x-delivery-limit": 3}),
        "classic": declare("classic"),
        "missing": f"{unique}-missing",
    }
    try:
        for kind, outcome, text in (
            ("safe", "ok", "failed messages go to exchange 'amq.fanout'"),
            ("limited", "warning", "dropped after 3 failed deliveries"),
            ("classic", "note", "other clients reject, are dropped"),
            ("missing", "failed", "no queue"),
        ):
            code, found = doctor(managed, "--read-only", "--queue", names[kind])
            assert code == (outcome == "failed")
            last = found[f"queue {names[kind]}"]
            assert (last["outcome"], text in last["text"]) == (outcome, True)
        assert doctor(managed, "--read-only", "--queue", names["limited"], "--strict")[0] == 1
    finally:
        with Connection(managed) as connection:
            for name in names.values():
                connection.default_channel.queue_delete(name)


def test_rabbitmq_without_its_management_api(doctor: Doctor, amqp_url: str) -> None:
    code, found = doctor(f"{amqp_url}?manager_port={free_ports(1)[0]}")
    assert (code, bad(found)) == (0, {})
    assert "were not checked" in found["management"]["text"]
    assert "rabbitmq_management" in found["management"]["remedy"]


def test_a_login_that_is_refused(doctor: Doctor, amqp_url: str) -> None:
    code, found = doctor(amqp_url.replace("guest:guest@", "guest:wrong-secret@"))
    assert (code, bad(found)) == (1, {"login": "failed"})
    assert "check user, password" in found["login"]["text"]
    assert "message" not in found
    assert "wrong-secret" not in repr(found)


def test_nothing_listens(doctor: Doctor) -> None:
    code, found = doctor(f"redis://127.0.0.1:{free_ports(1)[0]}")
    assert (code, bad(found)) == (1, {"TCP": "failed"})
    assert "is the broker running" in found["TCP"]["text"]


def test_a_name_that_is_unknown(doctor: Doctor) -> None:
    code, found = doctor("amqp://nosuchhost.invalid//", "--timeout", "5")
    assert (code, bad(found)) == (1, {"name": "failed"})


@pytest.mark.parametrize(
    ("certificate", "options", "outcome", "text"),
    [
        ("server", {"ca_certs": str(CERTS / "ca.pem")}, "ok", "verified, ends in"),
        ("server", {"cert_reqs": "CERT_NONE"}, "warning", "not verified"),
        ("server", {}, "failed", "ca_certs"),
        ("expired", {"ca_certs": str(CERTS / "ca.pem")}, "failed", "renew it"),
        ("elsewhere", {"ca_certs": str(CERTS / "ca.pem")}, "failed", "valid for"),
    ],
)
def test_certificates(
    doctor: Doctor,
    redis_url: str,
    tls_front: TlsFront,
    certificate: str,
    options: dict[str, str],
    outcome: str,
    text: str,
) -> None:
    port = int(redis_url.rpartition("/")[0].rpartition(":")[2])
    front = tls_front(("127.0.0.1", port), certificate=certificate)
    query = "&".join(f"ssl_{name}={quote(value)}" for name, value in options.items())
    code, found = doctor(f"rediss://localhost:{front}/0?{query}", "--read-only")
    assert code == (outcome == "failed")
    last = found["TLS" if outcome == "failed" else "certificate"]
    assert (last["outcome"], text in last["text"]) == (outcome, True)


def test_redis(doctor: Doctor, redis_with: RedisFactory) -> None:
    server = redis_with("--maxmemory-policy", "allkeys-lru", "--maxmemory", "1mb")
    code, found = doctor(server.url, "--read-only")
    assert code == 0
    assert bad(found) == {"eviction": "warning", "memory": "warning"}
    assert "deletes queues" in found["eviction"]["text"]
    server = redis_with("--appendonly", "yes")
    code, found = doctor(server.url)
    assert (code, bad(found)) == (0, {})
    assert found["server"]["text"].split()[0] in ("Redis", "Valkey")
    assert found["persistence"]["outcome"] == "note"
    assert "loses what came last (appendfsync everysec)" in found["persistence"]["text"]
    always = redis_with("--appendonly", "yes", "--appendfsync", "always")
    assert doctor(always.url)[1]["persistence"]["outcome"] == "ok"


def test_each_broker_of_a_failover_list(
    capfd: pytest.CaptureFixture[str], redis_url: str, amqp_url: str
) -> None:
    gone = f"redis://127.0.0.1:{free_ports(1)[0]}"
    code = main(["doctor", f"{redis_url};{gone}", "--read-only"])
    output = capfd.readouterr().out
    assert code == 1
    assert output.count("\n  ok      login") == 1
    assert f"{gone}/\n  failed  TCP" in output
    assert "\x1b" not in output  # no colours in a pipe


@pytest.mark.parametrize("url", ["memory://", "sqlite:///{tmp}/broker.db"])
def test_embedded_brokers(doctor: Doctor, url: str, tmp_path: Any) -> None:
    code, found = doctor(url.format(tmp=tmp_path))
    assert (code, bad(found)) == (0, {})
    assert "message" in found
    assert "TCP" not in found


def test_postgresql(doctor: Doctor, postgresql_url: str, postgresql: Database, unique: str) -> None:
    code, found = doctor(postgresql_url)
    assert code == 0
    # The tests' server has no fsync.
    assert bad(found) == {"persistence": "warning"}
    assert found["server"]["text"].startswith("PostgreSQL ")
    assert "primary with" in found["role"]["text"]
    assert unique in found["schema"]["text"]
    assert {"message", "notifications", "connections", "transactions", "vacuum"} <= found.keys()

    # A role that only publishes, and a queue that is forgotten.
    with Connection(postgresql_url) as connection:
        greenconn.publish_many("left", range(100), connection=connection, declare=True)
    postgresql.execute(f'CREATE ROLE "{unique}" LOGIN')
    postgresql.execute(f'GRANT USAGE ON SCHEMA "{unique}" TO "{unique}"')
    postgresql.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA "{unique}" TO "{unique}"')
    try:
        url = postgresql_url.replace("postgres@", f"{unique}@")
        code, found = doctor(url, "--read-only", "--queue", "left")
        assert code == 1
        assert "lacks INSERT on messages, UPDATE on consumers" in found["rights"]["text"]
        assert "GRANT pg_monitor" in found["transactions"]["remedy"]
        assert "in 'left' 100 messages wait" in found["queues"]["text"]
        assert found["queue left"]["outcome"] == "warning"
        postgresql.execute(f'GRANT INSERT ON "{unique}".messages TO "{unique}"')
        postgresql.execute(f'GRANT UPDATE ON "{unique}".consumers TO "{unique}"')
        code, found = doctor(url, "--read-only")
        assert (code, found["rights"]["outcome"]) == (0, "note")
    finally:
        postgresql.execute(f'DROP OWNED BY "{unique}"')
        postgresql.execute(f'DROP ROLE "{unique}"')


def test_postgresql_that_is_used_badly(
    doctor: Doctor, postgresql_with: PostgresServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("greenconn.cli.doctor"), "LONG", 0.0)
    settings = ("max_connections = 8", "autovacuum = off", "max_prepared_transactions = 2")
    server = postgresql_with(*settings)
    pooled = postgresql_with.pooled(server, "transaction", 3).url
    with psycopg.connect(server.url, application_name="report") as report:
        report.execute("DECLARE held CURSOR FOR SELECT 1 FROM pg_class")
        others = [psycopg.connect(server.url) for _ in range(3)]
        try:
            code, found = doctor(pooled, "--read-only")
        finally:
            for other in others:
                other.close()
        assert code == 0
        assert "look for messages every 1 s" in found["notifications"]["text"]
        assert found["connections"]["outcome"] == "warning"
        assert "autovacuum is off" in found["vacuum"]["text"]
        told = found["transactions"]
        assert f"process {report.info.backend_pid} (role postgres, " in told["text"]
        assert "application report, idle in transaction)" in told["text"]
        assert "holds vacuum back by" in told["text"]
        report.rollback()
        report.execute("SELECT pg_current_xact_id()")
        report.execute("PREPARE TRANSACTION 'forgotten'")
    assert "'forgotten' was prepared" in doctor(pooled, "--read-only")[1]["transactions"]["text"]


def test_a_standby(doctor: Doctor, postgresql_with: PostgresServers) -> None:
    primary = postgresql_with()
    standby = postgresql_with(source=primary)
    code, found = doctor(standby.url)
    assert code == 1
    assert "standby or read-only; name the primary" in found["login"]["text"]
    until(lambda: "asynchronous" in doctor(primary.url, "--read-only")[1]["role"]["text"])


LIBRARIES = "import jinja2, redis, sqlalchemy, urllib3\n"
PATCH = "from gevent import monkey\nmonkey.patch_all()\n"


@pytest.mark.parametrize(
    ("program", "outcome", "text"),
    [
        (PATCH + LIBRARIES, "ok", "patches the standard library before what it affects"),
        (LIBRARIES, "note", "does not patch the standard library"),
        ("1/0", "failed", "ZeroDivisionError"),
        ("", "note", "does not patch"),
    ],
)
def test_an_application_that_patches_in_time(
    doctor: Doctor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    program: str,
    outcome: str,
    text: str,
) -> None:
    (tmp_path / "shop_tasks.py").write_text(f"print('imported')\n{program}")
    monkeypatch.chdir(tmp_path)
    code, found = doctor("memory://", "--read-only", "--app", "shop_tasks:app")
    finding = found["import" if outcome == "failed" else "patching"]
    assert code == (outcome == "failed")
    assert finding["outcome"] == outcome
    assert text in finding["text"]


def test_an_application_that_patches_too_late(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = "import threading, time\nfrom time import sleep\n\nclass Own:\n    lock = threading.Lock()\n\n"
    (tmp_path / "shop_tasks.py").write_text(own + LIBRARIES + PATCH)
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    assert main(["doctor", "memory://", "--json", "--read-only", "--app", "shop_tasks"]) == 0
    findings = json.loads(capfd.readouterr()[0])["checks"]["application shop_tasks"]
    assert {each["outcome"] for each in findings} == {"warning"}
    texts = {each["text"].partition(" before the patch: ")[0] for each in findings}
    for module, original in (
        ("urllib3.util.ssl_", "ssl.SSLContext"),
        ("shop_tasks", "threading.Lock"),
        ("shop_tasks", "time.sleep"),
    ):
        assert any(module in each and original in each for each in texts), texts
    assert all("monkey.patch_all() before the import of" in each["remedy"] for each in findings)
