"""TLS over memory BIOs: two sessions that talk to each other."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenconn.wire.tls import (
    OPTIONS,
    CertificateRejected,
    TlsError,
    TlsSession,
    tls_context,
    tls_session,
)
from tests.brokers.tls import CERTS

CA = str(CERTS / "ca.pem")


def server_context(name: str = "server", ask: bool = False) -> ssl.SSLContext:
    """A broker's context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTS / f"{name}.pem", CERTS / f"{name}.key")
    if ask:
        context.load_verify_locations(CA)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Pair:
    """A client and a server, connected by the test."""

    def __init__(
        self,
        option: Any = None,
        hostname: str | None = "localhost",
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.client = tls_session({"ca_certs": CA} if option is None else option, hostname)
        self.server = TlsSession(context or server_context(), None, server_side=True)

    def connect(self, piece: int = 1 << 20) -> Pair:
        """Shake hands, handing over at most *piece* bytes at a time."""
        to_server, to_client = self.client.start(), self.server.start()
        while to_server or to_client:
            to_server, received = b"", to_server
            for start in range(0, len(received), piece):
                assert self.server.feed(received[start : start + piece]) == b""
            to_client += self.server.take_output()
            to_client, received = b"", to_client
            for start in range(0, len(received), piece):
                assert self.client.feed(received[start : start + piece]) == b""
            to_server += self.client.take_output()
        assert self.client.handshake_done
        assert self.server.handshake_done
        return self


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_a_handshake_in_any_pieces(piece: int) -> None:
    pair = Pair().connect(piece)
    assert pair.client.version == "TLSv1.3"


@pytest.mark.parametrize(
    "hostname", ["localhost", "broker.test", "broker.test.", "127.0.0.1", "::1"]
)
def test_names_and_addresses_of_the_certificate(hostname: str) -> None:
    Pair(hostname=hostname).connect()


def test_both_directions() -> None:
    pair = Pair().connect()
    assert pair.server.feed(pair.client.encrypt(b"there")) == b"there"
    assert pair.client.feed(pair.server.encrypt(b"back")) == b"back"


def test_many_records_in_one_feed() -> None:
    pair = Pair().connect()
    body = bytes(range(256)) * 4096
    sealed = pair.client.encrypt(b"small") + pair.client.encrypt(memoryview(body))
    assert pair.server.feed(sealed) == b"small" + body


@settings(max_examples=30)
@given(data=st.data())
def test_any_split_of_the_ciphertext(data: st.DataObject) -> None:
    pair = Pair().connect()
    messages = data.draw(st.lists(st.binary(max_size=40_000), max_size=4))
    sealed = b"".join(pair.client.encrypt(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sealed)), max_size=8)))
    received = b"".join(
        pair.server.feed(sealed[start:end])
        for start, end in zip([0, *cuts], [*cuts, len(sealed)], strict=True)
    )
    assert received == b"".join(messages)


def test_a_write_before_the_end_of_the_handshake_waits_for_it() -> None:
    pair = Pair()
    hello = pair.client.start()
    assert pair.client.encrypt(b"early ") == b""
    assert pair.client.encrypt(b"bird") == b""
    pair.server.start()
    pair.server.feed(hello)
    pair.client.feed(pair.server.take_output())
    assert pair.server.feed(pair.client.take_output()) == b"early bird"


def test_a_clean_end() -> None:
    pair = Pair().connect()
    last = pair.client.encrypt(b"last words") + pair.client.close_notify()
    assert pair.server.feed(last) == b"last words"
    assert pair.server.has_ended
    pair.server.feed_eof()
    assert pair.server.feed(b"") == b""


def test_closing_twice_says_so_once() -> None:
    pair = Pair().connect()
    assert pair.client.close_notify()
    assert pair.client.close_notify() == b""


def test_closing_before_the_handshake_is_over() -> None:
    client = Pair().client
    client.start()
    assert client.close_notify() == b""


def test_closing_after_a_broken_record_says_nothing() -> None:
    pair = Pair().connect()
    with pytest.raises(TlsError):
        pair.client.feed(b"AMQP\x00\x00\x09\x01" * 4)
    pair.client.take_output()
    assert pair.client.close_notify() == b""


def test_an_end_without_close_notify_is_an_error() -> None:
    pair = Pair().connect()
    with pytest.raises(TlsError, match="'localhost' closed the connection without close_notify"):
        pair.client.feed_eof()


def test_an_end_within_the_handshake_is_an_error() -> None:
    client = Pair().client
    client.start()
    with pytest.raises(TlsError, match="check that it expects TLS on this port"):
        client.feed_eof()


def test_a_peer_that_speaks_plain_amqp() -> None:
    client = Pair().client
    client.start()
    with pytest.raises(TlsError, match="'localhost' failed: the peer does not speak TLS"):
        client.feed(b"AMQP\x00\x00\x09\x01")
    with pytest.raises(TlsError, match="does not speak TLS"):
        client.feed(b"more")
    with pytest.raises(TlsError, match="does not speak TLS"):
        client.encrypt(b"more")


def test_what_came_before_a_broken_record_is_not_lost() -> None:
    pair = Pair().connect()
    good, bad = pair.client.encrypt(b"good"), bytearray(pair.client.encrypt(b"bad"))
    bad[-1] ^= 1
    assert pair.server.feed(good + bad) == b"good"
    with pytest.raises(TlsError, match="TLS: connection with the peer failed"):
        pair.server.feed_eof()
    assert pair.server.close_notify() is not None


REJECTIONS: list[tuple[str, dict[str, Any], str, str]] = [
    ("server", {"ca_certs": str(CERTS / "other-ca.pem")}, "localhost", r"ssl=\{'ca_certs'"),
    ("server", {"ca_certs": CA}, "other.test", r"ssl=\{'server_hostname'"),
    ("elsewhere", {"ca_certs": CA}, "127.0.0.1", r"ssl=\{'server_hostname'"),
    ("expired", {"ca_certs": CA}, "localhost", "renew it"),
]


@pytest.mark.parametrize(("name", "option", "hostname", "remedy"), REJECTIONS)
def test_a_certificate_that_is_not_accepted(
    name: str, option: dict[str, Any], hostname: str, remedy: str
) -> None:
    pair = Pair(option, hostname, server_context(name))
    with pytest.raises(CertificateRejected, match=remedy) as caught:
        pair.connect()
    assert repr(hostname) in str(caught.value)
    assert isinstance(caught.value, ssl.SSLCertVerificationError)
    assert isinstance(caught.value, OSError)
    assert caught.value.verify_code
    alert = pair.client.take_output()
    with pytest.raises(TlsError):
        pair.server.feed(alert)


def test_true_trusts_only_the_system() -> None:
    with pytest.raises(CertificateRejected):
        Pair(True).connect()


def test_the_name_to_check_can_be_given() -> None:
    Pair({"ca_certs": CA, "server_hostname": "broker.test"}, "10.1.2.3").connect()


def test_a_missing_client_certificate_names_the_remedy() -> None:
    pair = Pair(context=server_context(ask=True))
    pair.server.start()
    with pytest.raises(TlsError):
        pair.server.feed(pair.client.start())
        pair.client.feed(pair.server.take_output())
        pair.server.feed(pair.client.take_output())
    with pytest.raises(TlsError, match=r"needs a client certificate: pass ssl=\{'certfile'"):
        pair.client.feed(pair.server.take_output())


EARLY = "from gevent import monkey; monkey.patch_all()\n"
LATE = "from gevent import monkey\n"
PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
{first}
import ssl
before = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
before.load_verify_locations({ca!r})
from greenconn.wire.tls import TlsSession, tls_session
{then}
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain({server!r} + ".pem", {server!r} + ".key")
for option in ({{"ca_certs": {ca!r}}}, before, {{"ca_certs": {ca!r}, "ssl_version": "TLSv1.3"}}):
    client, broker = tls_session(option, "localhost"), TlsSession(server, None, True)
    broker.start()
    broker.feed(client.start())
    client.feed(broker.take_output())
    print(broker.feed(client.take_output() + client.encrypt(b"text")).decode())
"""


@pytest.mark.parametrize(
    ("first", "then"),
    [("", ""), (EARLY, ""), (LATE, "monkey.patch_all()"), (LATE, "monkey.patch_ssl()")],
    ids=["plain", "patched", "patched late", "only ssl patched late"],
)
def test_patched_and_unpatched_processes(first: str, then: str) -> None:
    program = PROGRAM.format(first=first, then=then, ca=CA, server=str(CERTS / "server"))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert done.stdout == "text\ntext\ntext\n", done.stderr


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


def test_by_default_the_system_s_authorities_are_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(shutil.copy(CA, tmp_path)))
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


@pytest.mark.parametrize("kind", [str, Path])
def test_connections_share_a_context_while_its_files_are_the_same(
    tmp_path: Path, kind: Callable[[str], Any]
) -> None:
    for name in ("pem", "key"):
        shutil.copy(CERTS / f"client.{name}", tmp_path)
    own = str(tmp_path / "client")
    options = {"ca_certs": kind(CA), "certfile": kind(f"{own}.pem"), "keyfile": kind(f"{own}.key")}
    first = tls_context(options)
    assert tls_context({**options, "server_hostname": "another"}) is first
    assert tls_context({**options, "check_hostname": False}) is not first
    assert first.check_hostname
    # As whoever renews a certificate does.
    for name in ("pem", "key"):
        renewed = shutil.copy(CERTS / f"server.{name}", tmp_path / "new")
        Path(renewed).rename(tmp_path / f"client.{name}")
    assert tls_context(options) is not first
    server = server_context(ask=True)
    pair = Pair(options, context=server).connect()
    subject = dict(each for part in pair.server.peer_certificate["subject"] for each in part)
    assert subject["commonName"] == "server"


def test_the_system_s_authorities_are_read_again_when_they_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "authorities.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    shutil.copy(CERTS / "other-ca.pem", file)
    with pytest.raises(CertificateRejected):
        Pair(True).connect()
    known = tls_context(True)
    assert tls_context({}) is known
    shutil.copy(CA, tmp_path / "new")
    (tmp_path / "new").rename(file)
    Pair(True).connect()
    assert tls_context(True) is not known


def test_what_could_not_be_loaded_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "late.pem"
    with pytest.raises(ValueError, match="ca_certs"):
        tls_context({"ca_certs": file})
    shutil.copy(CA, file)
    Pair({"ca_certs": file}).connect()


def test_options_that_have_no_hash_are_used_as_well() -> None:
    data = bytearray(ssl.PEM_cert_to_DER_cert(Path(CA).read_text()))
    for _ in range(2):
        Pair({"ca_data": data}).connect()
