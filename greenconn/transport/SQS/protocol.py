"""Requests to services of AWS and their responses: JSON 1.0 (SQS) or Query (SNS, STS), signed.

Sources: Smithy, "AWS JSON 1.0 protocol" and "AWS Query protocol"; AWS, "Signature Version 4 signing
process" (a POST without a query, all headers signed).

botocore signs too, but at its DEBUG level it writes what it signs to the log, session token and all,
and it costs four times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from hmac import digest
from json import dumps, loads
from typing import Any, Final, Protocol
from urllib.parse import urlencode
from xml.etree import ElementTree

from greenconn.green.http import HttpResponse

__all__ = ["PROTOCOLS", "JsonProtocol", "QueryProtocol", "Refusal", "WireProtocol", "signed"]


class Refusal(Exception):
    """The error that a service replied with."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message


def _unreadable(reply: HttpResponse) -> Refusal:
    # The page of a proxy, or half of a response: worth a retry.
    text = reply.body[:100].decode(errors="replace")
    return Refusal(max(reply.status, 500), "ServiceUnavailable", f"not a response: {text!r}")


class WireProtocol(Protocol):
    """The protocol of a service."""

    def request(self, action: str, parameters: Mapping[str, Any]) -> tuple[dict[str, str], bytes]:
        """Return headers and body of a request."""
        ...

    def parse_response(self, action: str, reply: HttpResponse) -> dict[str, Any]:
        """Return what a reply says.

        Raises:
            Refusal: the service replied with an error.
        """
        ...


class JsonProtocol:
    """Both are JSON.

    Arguments:
        target: the service, as it calls itself.
    """

    def __init__(self, target: str) -> None:
        self._target = target

    def request(self, action: str, parameters: Mapping[str, Any]) -> tuple[dict[str, str], bytes]:
        """See :class:`WireProtocol`."""
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"{self._target}.{action}",
        }
        return headers, dumps(parameters).encode()

    def parse_response(self, action: str, reply: HttpResponse) -> dict[str, Any]:
        """See :class:`WireProtocol`."""
        try:
            said = loads(reply.body) if reply.body else {}
        except ValueError:
            raise _unreadable(reply) from None
        if not isinstance(said, dict):
            raise _unreadable(reply)
        if reply.status < 300:
            return said
        code = str(said.get("__type") or reply.headers.get("x-amzn-errortype") or "")
        if not code:  # not of the service: of something on the way, such as "400 Bad Request"
            raise _unreadable(reply)
        raise Refusal(reply.status, code, str(said.get("message") or said.get("Message") or ""))


class QueryProtocol:
    """A form out, XML in: texts, lists and dicts of them.

    Arguments:
        version: of the service's API.
        maps: names of parameters whose entries are called otherwise than ``key`` and ``value``.
    """

    def __init__(self, version: str, maps: Mapping[str, tuple[str, str]] | None = None) -> None:
        self._version = version
        self._maps = maps or {}

    def request(self, action: str, parameters: Mapping[str, Any]) -> tuple[dict[str, str], bytes]:
        """See :class:`WireProtocol`."""
        form: dict[str, str] = {"Action": action, "Version": self._version}
        for name, value in parameters.items():
            self._flatten(form, name, name, value)
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        return headers, urlencode(form).encode()

    def _flatten(self, form: dict[str, str], path: str, name: str, value: Any) -> None:
        if isinstance(value, Mapping) and name in MAPS:
            key, each = self._maps.get(name, ("key", "value"))
            for number, (member, content) in enumerate(value.items(), 1):
                form[f"{path}.entry.{number}.{key}"] = member
                self._flatten(form, f"{path}.entry.{number}.{each}", "", content)
        elif isinstance(value, Mapping):
            for member, content in value.items():
                self._flatten(form, f"{path}.{member}", member, content)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for number, content in enumerate(value, 1):
                self._flatten(form, f"{path}.member.{number}", "", content)
        else:
            form[path] = str(value).lower() if isinstance(value, bool) else str(value)

    def parse_response(self, action: str, reply: HttpResponse) -> dict[str, Any]:
        """See :class:`WireProtocol`."""
        try:
            read = _read(ElementTree.fromstring(reply.body))
        except ElementTree.ParseError:
            raise _unreadable(reply) from None
        said = read if isinstance(read, dict) else {}
        if reply.status < 300:
            result = said.get(f"{action}Result")
            return result if isinstance(result, dict) else {}
        error = said.get("Error") or (said.get("Errors") or {}).get("Error")
        if not isinstance(error, dict):
            raise _unreadable(reply)
        raise Refusal(reply.status, str(error.get("Code") or ""), str(error.get("Message") or ""))


#: Parameters that are maps, and no structures.
MAPS: Final = frozenset({"Attributes", "MessageAttributes"})


def _read(element: ElementTree.Element) -> Any:
    """Return the content of an element; an empty one is an empty text."""
    children = list(element)
    if not children:
        return element.text or ""
    if all(_name(child) == "member" for child in children):
        return [_read(child) for child in children]
    return {_name(child): _read(child) for child in children}


def _name(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


#: Service -> how it is spoken with.
PROTOCOLS: Final[Mapping[str, WireProtocol]] = {
    "sqs": JsonProtocol("AmazonSQS"),
    "sns": QueryProtocol("2010-03-31", {"MessageAttributes": ("Name", "Value")}),
    "sts": QueryProtocol("2011-06-15"),
}

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
#: Names what a key derived from a secret is for.
_KEY_USE: Final = "aws4_request"


def signed(
    credentials: Any,
    *,
    service: str,
    region: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    now: datetime,
) -> dict[str, str]:
    """Return the headers of a POST with those that sign it.

    Arguments:
        credentials: ``access_key``, ``secret_key`` and perhaps ``token``.
        path: quoted.
        headers: what is sent and signed; ``Host`` is among them.
        now: in UTC; AWS takes what is five minutes off.
    """
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    sent = {**headers, "X-Amz-Date": stamp}
    if credentials.token:
        sent["X-Amz-Security-Token"] = credentials.token
    lines = sorted((name.lower(), " ".join(value.split())) for name, value in sent.items())
    names = ";".join(name for name, _ in lines)
    request = "\n".join(
        [
            "POST",
            path,
            "",
            *(f"{name}:{value}" for name, value in lines),
            "",
            names,
            sha256(body).hexdigest(),
        ]
    )
    day = stamp[:8]
    scope = f"{day}/{region}/{service}/{_KEY_USE}"
    text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, region, service, _KEY_USE, text):
        key = digest(key, part.encode(), "sha256")
    sent["Authorization"] = (
        f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={key.hex()}"
    )
    return sent
