"""TLS contexts from kombu's ``ssl`` argument.

Unlike there, ``True`` verifies the certificate and the host name, and so does a dict that does not say
otherwise.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

__all__ = ["OPTIONS", "TlsOption", "named_options", "tls_context"]

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
    """Make a client's context from kombu's ``ssl`` argument.  (Reading the system's authorities
    takes some 15 ms: keep it.)

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
