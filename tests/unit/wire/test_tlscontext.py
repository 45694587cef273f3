"""kombu's ``ssl`` argument: whom TLS trusts, what it shows, and what cannot be."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenconn.wire.tlscontext import OPTIONS, tls_context
from tests.unit.wire.test_tls import CA, CERTS, Pair, server_context


def test_no_verification_when_asked() -> None:
    Pair({"cert_reqs": ssl.CERT_NONE}, "other.test").connect()
    Pair({"cert_reqs": "none"}, "other.test").connect()
    Pair({"ca_certs": CA, "check_hostname": False}, "other.test").connect()


def test_a_client_certificate() -> None:
    files = {"certfile": str(CERTS / "client.pem"), "keyfile": str(CERTS / "client.key")}
    Pair({"ca_certs": CA, **files}, context=server_context(ask=True)).connect()
    files["keyfile"] = str(CERTS / "client-locked.key")
    Pair(
        {"ca_certs": CA, **files, "password": "secret"}, context=server_context(ask=True)
    ).connect()


@pytest.mark.parametrize("name", ["keyfile", "certfile"])
def test_a_locked_key_without_its_password_asks_nobody(name: str) -> None:
    files = {"certfile": str(CERTS / "client.pem"), "keyfile": str(CERTS / "client-locked.key")}
    with pytest.raises(ValueError, match=r"client\.pem"):
        tls_context(files)


@pytest.mark.parametrize(
    "make",
    [
        lambda context: context,
        lambda context: {"context": context},
        lambda context: {"context": context, "server_hostname": "localhost"},
        lambda context: {"context": {"cafile": CA}},
        lambda context: {"context": {"cafile": CA, "check_hostname": True}, "ciphers": "HIGH"},
        lambda context: {"ssl_ca_certs": CA, "ssl_cert_reqs": "required", "ssl_keyfile": None},
        lambda context: {"ca_data": Path(CA).read_text()},
        lambda context: {"cadata": ssl.PEM_cert_to_DER_cert(Path(CA).read_text())},
        lambda context: {"ca_certs": CA, "do_handshake_on_connect": False},
        lambda context: {"ca_certs": CA, "cert_reqs": 2, "ssl_version": ssl.PROTOCOL_TLS_CLIENT},
    ],
)
def test_other_ways_to_say_it(make: Callable[[ssl.SSLContext], Any]) -> None:
    Pair(make(ssl.create_default_context(cafile=CA))).connect()


@pytest.mark.parametrize(
    ("version", "spoken"),
    [
        (None, "TLSv1.3"),
        ("PROTOCOL_TLS", "TLSv1.3"),
        ("TLSv1.2", "TLSv1.3"),
        (ssl.TLSVersion.TLSv1_2, "TLSv1.3"),
        (ssl.PROTOCOL_TLSv1_2, "TLSv1.2"),
        ("tls1.3", "TLSv1.3"),
        (ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
    ],
)
def test_versions(version: Any, spoken: str) -> None:
    pair = Pair({"ca_certs": CA, "ssl_version": version}).connect()
    assert pair.client.version == spoken
    assert pair.server.feed(pair.client.encrypt(b"x")) == b"x"


def test_nothing_below_1_2_is_spoken() -> None:
    assert tls_context({"ca_certs": CA}).minimum_version == ssl.TLSVersion.TLSv1_2


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ca_cert": CA}, r"unknown ssl option 'ca_cert' for 'h'; known: " + ", ".join(OPTIONS[:3])),
    ({"server_side": True}, "unknown ssl option 'server_side'"),
    ({"ca_certs": "/nowhere/ca.pem"}, r"'ca_certs': '/nowhere/ca.pem' cannot be used \(No such"),
    ({"ca_data": "no pem"}, "'ca_data'"),
    ({"certfile": "/nowhere/c.pem"}, r"'certfile': '/nowhere/c.pem' cannot be used \(No such"),
    ({"keyfile": "k.pem"}, "'keyfile' needs 'certfile'"),
    ({"cert_reqs": "maybe"}, "CERT_NONE, CERT_OPTIONAL, CERT_REQUIRED"),
    ({"cert_reqs": 7}, "'cert_reqs'"),
    ({"cert_reqs": 0, "check_hostname": True}, "check_hostname"),
    ({"ssl_version": "TLSv1"}, "TLS 1.2 and later"),
    ({"ssl_version": ssl.PROTOCOL_TLSv1_1}, "TLS 1.2 and later"),
    ({"ciphers": "NONSENSE"}, "'ciphers'"),
    (
        {"context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "ca_certs": CA},
        "cannot be combined with others",
    ),
]


@pytest.mark.parametrize(("option", "message"), WRONG)
def test_what_cannot_be_used(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tls_context(option, "h")


def test_a_context_is_taken_as_it_is() -> None:
    context = ssl.create_default_context()
    assert tls_context(context) is context
    assert tls_context({"context": context, "server_hostname": "other"}) is context


def test_by_default_the_certificate_and_the_name_are_verified() -> None:
    options: list[Any] = [True, {}, {"cert_reqs": None}, {"cert_reqs": "CERT_REQUIRED"}]
    options += [{"check_hostname": value} for value in (True, "yes", "1", None)]
    for option in options:
        context = tls_context(option)
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname


@pytest.mark.parametrize("value", [False, 0, "", "0", "false", " No ", "off", "none"])
def test_the_name_alone_may_go_unchecked(value: Any) -> None:
    context = tls_context({"ca_certs": CA, "check_hostname": value})
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert not context.check_hostname


@pytest.mark.parametrize("value", [0, "0", "none", "CERT_NONE", "ssl.CERT_NONE", ssl.CERT_NONE])
def test_nothing_is_verified(value: Any) -> None:
    context = tls_context({"cert_reqs": value})
    assert context.verify_mode == ssl.CERT_NONE
    assert not context.check_hostname
    assert not context.get_ca_certs()


def test_an_optional_certificate() -> None:
    context = tls_context({"ca_certs": CA, "cert_reqs": "optional"})
    assert context.verify_mode == ssl.CERT_OPTIONAL
    assert context.check_hostname


def test_given_authorities_replace_the_system_s(tmp_path: Path) -> None:
    given = tls_context({"ca_certs": CA})
    assert len(given.get_ca_certs()) == 1
    assert tls_context({"ca_path": str(tmp_path)}).get_ca_certs() == []


def test_one_version_alone() -> None:
    context = tls_context({"ssl_version": ssl.PROTOCOL_TLSv1_2})
    assert context.maximum_version == ssl.TLSVersion.TLSv1_2
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_what_means_nothing_here_may_be_given() -> None:
    option = {
        "server_side": False,
        "suppress_ragged_eofs": True,
        "purpose": ssl.Purpose.SERVER_AUTH,
    }
    assert tls_context({"ca_certs": CA, **option}).verify_mode == ssl.CERT_REQUIRED


def test_what_is_beside_a_dict_wins() -> None:
    context = tls_context({"context": {"cafile": CA, "cert_reqs": 0}, "cert_reqs": "required"})
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_a_certificate_in_one_file_with_its_key(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes((CERTS / "client.pem").read_bytes() + (CERTS / "client.key").read_bytes())
    option = {"ca_certs": CA, "certfile": str(both)}
    Pair(option, context=server_context(ask=True)).connect()


def test_by_default_the_system_s_authorities_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ssl.Purpose] = []
    monkeypatch.setattr(
        ssl.SSLContext,
        "load_default_certs",
        lambda self, purpose=ssl.Purpose.SERVER_AUTH: loaded.append(purpose),
    )
    tls_context({"cert_reqs": "CERT_NONE"})
    assert loaded == []
    tls_context({"cert_reqs": "CERT_REQUIRED"})
    assert loaded == [ssl.Purpose.SERVER_AUTH]
