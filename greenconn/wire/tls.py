"""TLS without I/O: ciphertext in, plaintext out, over memory BIOs.

The stream below hands over what it received and sends what it is given, so that only its reader
touches the receiving side.  A write that cannot go on until something was received (the handshake,
a renegotiation) is kept and goes on by itself in :meth:`TlsSession.feed`.

TLS contexts come from kombu's ``ssl`` argument.  Unlike there, ``True`` verifies the certificate and the
host name, and so does a dict that does not say otherwise.
"""

from __future__ import annotations

import os
import ssl
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TypeGuard

#: A record holds 16 KiB at most, and each read gives at most one.
RECORD: Final = 16384

_NOT_FOR_THIS_NAME: Final = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_
_OUT_OF_DATE: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED
_REMEDIES: Final = {
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS: check that this is its TLS port",
    "PACKET_LENGTH_TOO_LONG": "the peer does not speak TLS: check that this is its TLS port",
    "UNSUPPORTED_PROTOCOL": "the peer offers only versions below TLS 1.2",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer accepts none of the TLS versions offered",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        "the peer found no common cipher, or needs a client certificate: pass ssl={'certfile': "
        "..., 'keyfile': ...}"
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        "the peer needs a client certificate: pass ssl={'certfile': ..., 'keyfile': ...}"
    ),
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know the authority that signed the client certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer did not accept the client certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the client certificate has expired",
}

TlsOption = bool | Mapping[str, Any] | ssl.SSLContext

#: Keys of a dict given as ``ssl``; each may also be written with ``ssl_`` before it.
OPTIONS: Final = (
    "ca_certs",  # file of PEM certificates to trust instead of the system's
    "ca_path",  # directory of the same
    "ca_data",  # PEM text or DER bytes of the same
    "certfile",  # our own certificate
    "keyfile",  # its key, if not in the same file
    "password",  # of the key
    "cert_reqs",  # ssl.CERT_REQUIRED (default), CERT_OPTIONAL, CERT_NONE, or their names
    "check_hostname",  # default True, unless cert_reqs is CERT_NONE
    "server_hostname",  # the name to ask for and to check, default the host
    "ciphers",  # OpenSSL's list, for TLS 1.2
    "ssl_version",  # PROTOCOL_TLS..., a TLSVersion, or a name; below TLS 1.2 is refused
    "context",  # an ssl.SSLContext to use as it is; or a dict for ssl.create_default_context
)
_ALIASES: Final = {
    "cafile": "ca_certs",
    "capath": "ca_path",
    "cadata": "ca_data",
    "version": "ssl_version",
    "min_version": "ssl_version",
    "minimum_version": "ssl_version",
}
#: Arguments of the former ``ssl.wrap_socket`` that mean nothing here.
_IDLE: Final = frozenset({"do_handshake_on_connect", "suppress_ragged_eofs", "purpose"})


def tls_context(option: TlsOption, hostname: str | None = None) -> ssl.SSLContext:
    """Return a context for kombu's ``ssl`` argument: the same one while its files do not change.

    Reading the system's authorities takes 15 to 30 ms, and each context that has read them keeps a MiB.

    Arguments:
        option: True, an ``ssl.SSLContext``, or a dict with keys of :data:`OPTIONS`.
        hostname: for messages.

    Raises:
        ValueError: an unknown key, a value that cannot be used, or a file that cannot be loaded:
            not an ``OSError``, since no other attempt helps.
    """
    if _is_context(option):
        return option
    values = named_options(option, hostname) if isinstance(option, Mapping) else {}
    given = values.pop("context", None)
    if _is_context(given):
        others = values.keys() - {"server_hostname"}
        if others:
            raise ValueError(
                f"ssl option 'context' cannot be combined with others, got {min(others)!r}"
            )
        return given
    if given is not None:
        values = {**named_options(given, hostname), **values}
    values.pop("server_hostname", None)  # of the session
    items = tuple(sorted(values.items()))
    try:
        hash(items)
    except TypeError:
        return _context.__wrapped__(items, ())
    return _context(items, _files(values))


def _files(values: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what tells whether a file that the options name, or the system's, is still the same."""
    names = [values.get(key) for key in ("certfile", "keyfile", "ca_certs", "ca_path")]
    if not (values.get("ca_certs") or values.get("ca_path") or values.get("ca_data")):
        names += ssl.get_default_verify_paths()[:2]
    return tuple(map(_version_of, names))


def _version_of(path: Any) -> tuple[object, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, TypeError, ValueError):
        return None  # loading it says what is wrong
    return path, found.st_ino, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=32)
def _context(items: tuple[tuple[str, Any], ...], files: tuple[object, ...]) -> ssl.SSLContext:
    """Make a context of the options *items*; *files* tells when another one must be made."""
    values = dict(items)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _set_version(context, values.get("ssl_version"))
    _set_verification(context, values)
    _load_authorities(context, values)
    _load_certificate(context, values)
    if values.get("ciphers") is not None:
        try:
            context.set_ciphers(values["ciphers"])
        except ssl.SSLError as exc:
            raise _unusable("ciphers", values["ciphers"], exc) from exc
    return context


def _is_context(value: object) -> TypeGuard[ssl.SSLContext]:
    # Not by class: gevent puts a subclass in the place of SSLContext, of which a context that was
    # made before is no instance.
    return hasattr(value, "wrap_bio")


def named_options(option: Mapping[str, Any], hostname: str | None) -> dict[str, Any]:
    """Return the options of a dict under their names in :data:`OPTIONS`.

    Raises:
        ValueError: an unknown key; says which are known.
    """
    values: dict[str, Any] = {}
    for key, value in option.items():
        name = key if key == "ssl_version" else key.removeprefix("ssl_")
        name = _ALIASES.get(name, name)
        if name in _IDLE or (name == "server_side" and not value):
            continue
        if name not in OPTIONS:
            where = f" for {hostname!r}" if hostname else ""
            raise ValueError(f"unknown ssl option {key!r}{where}; known: {', '.join(OPTIONS)}")
        values[name] = value
    return values


def _unusable(key: str, value: object, why: object) -> ValueError:
    return ValueError(f"ssl option {key!r}: {value!r} cannot be used ({why})")


def _set_version(context: ssl.SSLContext, version: object) -> None:
    if version is None:
        return
    name = str(getattr(version, "name", version)).upper()
    plain = name.removeprefix("PROTOCOL_").replace("_", "").replace(".", "")
    if plain in ("TLSV13", "TLS13"):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    elif plain in ("TLSV12", "TLS12"):
        if name.startswith("PROTOCOL_"):  # these constants mean one version and no other
            context.maximum_version = ssl.TLSVersion.TLSv1_2
    elif plain not in ("TLS", "TLSCLIENT", "SSLV23"):
        raise _unusable("ssl_version", version, "TLS 1.2 and later are supported")


def _set_verification(context: ssl.SSLContext, values: Mapping[str, Any]) -> None:
    mode = _verify_mode(values.get("cert_reqs"))
    check = values.get("check_hostname")
    if isinstance(check, str):
        check = check.strip().lower() not in ("", "0", "false", "no", "off", "none")
    if mode == ssl.CERT_NONE and check:
        raise ValueError("ssl option 'check_hostname' needs 'cert_reqs' other than CERT_NONE")
    if mode == ssl.CERT_NONE or (check is not None and not check):
        context.check_hostname = False
    context.verify_mode = mode


def _verify_mode(value: int | str | None) -> ssl.VerifyMode:
    if value is None:
        return ssl.CERT_REQUIRED
    try:
        if isinstance(value, str):
            name = value.strip().upper().rpartition("CERT_")[2]
            return ssl.VerifyMode(int(name)) if name.isdigit() else ssl.VerifyMode[f"CERT_{name}"]
        return ssl.VerifyMode(value)
    except (KeyError, ValueError):
        modes = ", ".join(ssl.VerifyMode.__members__)
        raise _unusable("cert_reqs", value, f"one of {modes}") from None


def _load_authorities(context: ssl.SSLContext, values: Mapping[str, Any]) -> None:
    file, path, text = (values.get(key) for key in ("ca_certs", "ca_path", "ca_data"))
    if not (file or path or text):
        if context.verify_mode != ssl.CERT_NONE:
            context.load_default_certs()
        return
    try:
        context.load_verify_locations(file or None, path or None, text or None)
    except OSError as exc:
        key = "ca_certs" if file else "ca_path" if path else "ca_data"
        raise _unusable(key, file or path or "its text", exc.strerror or exc) from exc


def _load_certificate(context: ssl.SSLContext, values: Mapping[str, Any]) -> None:
    certfile, keyfile = values.get("certfile"), values.get("keyfile")
    if not certfile:
        if keyfile:
            raise ValueError("ssl option 'keyfile' needs 'certfile'")
        return
    try:
        # With no password at all OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certfile, keyfile or None, values.get("password") or "")
    except OSError as exc:
        files = f"{certfile} with {keyfile}" if keyfile else str(certfile)
        raise _unusable("certfile", files, exc.strerror or exc) from exc


class TlsError(ssl.SSLError):
    """TLS with the peer failed."""


class CertificateRejected(TlsError, ssl.SSLCertVerificationError):
    """The peer's certificate is not one that we accept."""


class TlsSession:
    """One TLS connection.

    Arguments:
        context: of :func:`tls_context`, or the user's own.
        server_hostname: the name to ask for and, if the context says so, to check.
        server_side: we are the server.
    """

    def __init__(
        self, context: ssl.SSLContext, server_hostname: str | None, server_side: bool = False
    ) -> None:
        self.server_hostname = server_hostname
        #: Whether plaintext may come and go.
        self.handshake_done = False
        #: Whether the peer said that it sends nothing more (close_notify).
        self.has_ended = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        # wrap_bio is the same in a patched process: gevent changes only what touches sockets.
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side, None if server_side else server_hostname
        )
        self._unsent: deque[bytes | memoryview] = deque()
        self._failure: TlsError | None = None

    @property
    def version(self) -> str | None:
        """The protocol that was agreed upon, such as ``TLSv1.3``; None before that."""
        return self._tls.version()

    @property
    def cipher(self) -> str | None:
        """The name of the cipher suite that was agreed upon; None before that."""
        found = self._tls.cipher()
        return None if found is None else found[0]

    @property
    def peer_certificate(self) -> dict[str, Any]:
        """The peer's certificate as ``ssl.SSLSocket.getpeercert`` has it; empty if not verified."""
        return self._tls.getpeercert() or {}

    def start(self) -> bytes:
        """Begin the handshake and return what is to be sent first (nothing, for a server)."""
        self._shake_hands()
        return self._outgoing.read()

    def feed(self, ciphertext: bytes) -> bytes:
        """Take what was received and return the plaintext in it; look at :meth:`take_output` after.

        Raises:
            CertificateRejected: names the host and the remedy.
            TlsError: anything else; :meth:`take_output` may hold an alert for the peer.
        """
        if self._failure is not None:
            raise self._failure
        self._incoming.write(ciphertext)
        if not self.handshake_done and not self._shake_hands():
            return b""
        parts = self._read()
        self._send_unsent()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def feed_eof(self) -> None:
        """Note that the peer's socket has ended.

        Raises:
            TlsError: without close_notify, so what was received may have been cut short.
        """
        if self._failure is not None:
            raise self._failure
        if not self.handshake_done:
            raise TlsError(
                ssl.SSL_ERROR_EOF,
                f"TLS: {self._peer} closed the connection during the handshake: "
                f"check that it expects TLS on this port",
            )
        if not self.has_ended:
            raise TlsError(
                ssl.SSL_ERROR_EOF, f"TLS: {self._peer} closed the connection without close_notify"
            )

    def encrypt(self, plaintext: bytes | memoryview) -> bytes:
        """Return what is to be sent for *plaintext*: less or nothing when it has to wait for input.

        What waits is kept, and comes out of :meth:`take_output` after a later :meth:`feed`.  The session
        keeps as much memory as the longest *plaintext* has taken.
        """
        if self._failure is not None:
            raise self._failure
        self._unsent.append(plaintext)
        if self.handshake_done:
            self._send_unsent()
        return self._outgoing.read()

    def take_output(self) -> bytes:
        """Return what TLS itself wants sent, and writes that had waited."""
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        """Say that nothing more is sent, without waiting for the peer's reply."""
        self._unsent.clear()
        if self.handshake_done and self._failure is None:
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # the reply is not here yet, which is as it should be
        return self._outgoing.read()

    @property
    def _peer(self) -> str:
        return repr(self.server_hostname) if self.server_hostname else "the peer"

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as exc:
            self._failure = self._explained(exc)
            raise self._failure from exc
        self.handshake_done = True
        return True

    def _read(self) -> list[bytes]:
        # One receive may hold several records, and there is no event for those that we leave.  A read of
        # an empty BIO raises, which costs as much again.
        parts: list[bytes] = []
        try:
            while self._incoming.pending and not self.has_ended:
                part = self._tls.read(RECORD)
                if part:
                    parts.append(part)
                else:
                    self.has_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.has_ended = True
        except ssl.SSLError as exc:
            self._failure = self._explained(exc)
            if not parts:
                raise self._failure from exc
            # What came before the error is good; the next call raises.
            self._failure.__cause__ = exc
        return parts

    def _send_unsent(self) -> None:
        unsent = self._unsent
        while unsent:
            rest = memoryview(unsent[0])
            try:
                while rest:
                    rest = rest[self._tls.write(rest) :]
            except ssl.SSLWantReadError:
                # OpenSSL wants the same bytes again.
                unsent[0] = rest
                return
            except ssl.SSLError as exc:
                self._failure = self._explained(exc)
                raise self._failure from exc
            unsent.popleft()

    def _explained(self, exc: ssl.SSLError) -> TlsError:
        error: TlsError
        if isinstance(exc, ssl.SSLCertVerificationError):
            error = CertificateRejected(
                exc.errno,
                f"TLS: certificate verify failed: the certificate of {self._peer} is not accepted "
                f"({exc.verify_message}): "
                f"{self._remedy(exc.verify_code)}",
            )
            error.verify_code = exc.verify_code
            error.verify_message = exc.verify_message
        else:
            reason = exc.reason or str(exc)
            text = _REMEDIES.get(reason) or reason.replace("_", " ").lower()
            step = "connection" if self.handshake_done else "handshake"
            error = TlsError(exc.errno, f"TLS: {step} with {self._peer} failed: {text}")
        error.library = exc.library
        error.reason = exc.reason
        return error

    def _remedy(self, code: int) -> str:
        if code in _NOT_FOR_THIS_NAME:
            return (
                "connect by a name that it is valid for, or pass that name as "
                "ssl={'server_hostname': ...}"
            )
        if code in _OUT_OF_DATE:
            return "renew it on the broker, and check the clocks of both machines"
        return "pass the file of the authority that signed it as ssl={'ca_certs': ...}"


def tls_session(option: TlsOption, hostname: str | None) -> TlsSession:
    """Return a client's session for the host, made from kombu's ``ssl`` argument; see ``tls_context``.

    Raises:
        ValueError: the argument cannot be used.
    """
    name = hostname
    if isinstance(option, Mapping):
        name = named_options(option, hostname).get("server_hostname") or hostname
    if name is not None:
        name = name.partition("%")[0].rstrip(".")  # zone of an IPv6 address, root of a name
    return TlsSession(tls_context(option, hostname), name or None)
