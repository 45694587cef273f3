"""Servers that speak TLS, with a certificate of the tests."""

from __future__ import annotations

from pathlib import Path

from tests.brokers.keeper import Keeper
from tests.brokers.ports import free_ports
from tests.brokers.rabbitmq import RabbitMQ

CERTS = Path(__file__).resolve().parents[1] / "certs"
#: Who signed the certificate of the servers.
AUTHORITY = CERTS / "ca.pem"
_OWN = {"certfile": CERTS / "server.pem", "keyfile": CERTS / "server.key"}
#: Options with which a Redis shows that certificate at its ``--tls-port``.
REDIS_OPTIONS = (
    *("--tls-cert-file", str(_OWN["certfile"]), "--tls-key-file", str(_OWN["keyfile"])),
    *("--tls-ca-cert-file", str(AUTHORITY), "--tls-auth-clients", "no"),
)


class TlsRabbitMQ(RabbitMQ):
    """A RabbitMQ that listens for TLS at ``tls_port``, too."""

    def __init__(self, keeper: Keeper) -> None:
        (self.tls_port,) = free_ports(1)
        listener = {"listeners.ssl.1": f"127.0.0.1:{self.tls_port}"}
        own = {f"ssl_options.{name}": file for name, file in _OWN.items()}
        super().__init__(keeper, settings={**listener, **own})
