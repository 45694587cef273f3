"""Checks of the way to a broker: its name, its port, its certificate."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from time import monotonic
from typing import Any, Final

import gevent
from gevent.socket import SOCK_STREAM, getaddrinfo

from greenconn.cli.doctor.finding import Finding, failed, ok, warning
from greenconn.cli.errors import error_text
from greenconn.green.connect import connect_tcp, numeric
from greenconn.green.deadline import Deadline
from greenconn.green.stream import Stream
from greenconn.wire.tls import TlsSession, tls_session

__all__ = ["check_network"]

#: Days before its end at which a certificate is to be renewed.
RENEWED: Final = 30


def check_network(host: str, port: int, ssl: Any, timeout: float) -> Iterator[Finding]:
    """Check that a host can be reached.  May switch.

    Arguments:
        ssl: as a connection takes it; false: there is no TLS.
        timeout: seconds for each step.
    """
    if _is_address(host):
        addresses = [host]
    else:
        addresses, finding = _resolved(host, port, timeout)
        yield finding
    reached = None
    for address in addresses:
        began = monotonic()
        try:
            sock = connect_tcp(address, port, Deadline(timeout))
        except OSError as exc:
            yield failed("TCP", error_text(exc)[0])
            continue
        sock.close()
        reached = address
        yield ok("TCP", f"{address} port {port} accepts in {(monotonic() - began) * 1e3:.1f} ms")
    if reached is None:
        return
    if ssl:
        yield from _check_tls(host, reached, port, ssl, timeout)
    elif not ip_address(reached.partition("%")[0]).is_loopback:  # without the zone of IPv6
        yield warning(
            "TLS", "login and messages pass as plain text", "use TLS where others see the network"
        )


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _resolved(host: str, port: int, timeout: float) -> tuple[list[str], Finding]:
    """Return the addresses of a name, and what there is to say of it."""
    began = monotonic()
    try:
        with gevent.Timeout(timeout, TimeoutError(f"no answer within {timeout:g} s")):
            found = getaddrinfo(numeric(host), port, type=SOCK_STREAM)
    except OSError as exc:
        text = f"{host}: {error_text(exc)[0]}"
        return [], failed("name", text, "check the host in the URL, and the name server")
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    text = f"{host} is {', '.join(addresses)} ({(monotonic() - began) * 1e3:.1f} ms)"
    return addresses, ok("name", text)


def _check_tls(host: str, address: str, port: int, ssl: Any, timeout: float) -> Iterator[Finding]:
    try:
        session = tls_session(ssl, host)
        _shake_hands(session, address, port, timeout)
    except (OSError, ValueError) as exc:
        yield failed("TLS", error_text(exc)[0])
        return
    yield ok("TLS", f"{session.version}, {session.cipher}")
    certificate = session.peer_certificate
    if not certificate:
        yield warning(
            "certificate",
            "it is not verified: any host may answer in the name of the broker",
            "leave out cert_reqs, and name the authority that signed it with ca_certs",
        )
        return
    yield _check_end(certificate)


def _shake_hands(session: TlsSession, address: str, port: int, timeout: float) -> None:
    deadline = Deadline(timeout)
    sock = connect_tcp(address, port, deadline)
    stream = Stream(sock, _ignore, _ignore, f"{address}:{port}", session)
    try:
        stream.handshake(deadline)
    finally:
        stream.close()


def _ignore(anything: object) -> None:
    """Take what the peer sends, or the loss of the stream."""


def _check_end(certificate: dict[str, Any]) -> Finding:
    names = [name for field in certificate.get("subject", ()) for key, name in field]
    subject = ", ".join(names) or "no subject"
    end = parsedate_to_datetime(certificate["notAfter"])
    days = (end - datetime.now(timezone.utc)).days
    text = f"{subject}: verified, ends in {days:,} days ({end:%Y-%m-%d})"
    if days < RENEWED:
        return warning("certificate", text, "renew it on the broker")
    return ok("certificate", text)
