"""Signature version 4: how a request to AWS says who sends it.

Source: AWS, "Signature Version 4 signing process" (a POST without a query, all headers signed).

botocore signs too, but at its DEBUG level it writes what it signs to the log, session token and all,
and it costs four times as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from hmac import digest
from typing import Any, Final

__all__ = ["signed"]

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
#: Names what a key derived from a secret is for.
_REQUEST: Final = "aws4_request"


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
    scope = f"{day}/{region}/{service}/{_REQUEST}"
    text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, region, service, _REQUEST, text):
        key = digest(key, part.encode(), "sha256")
    sent["Authorization"] = (
        f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={key.hex()}"
    )
    return sent
