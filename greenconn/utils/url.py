"""Broker URLs (kombu.utils.url)."""

from __future__ import annotations

from greenconn.url import (
    as_url,
    maybe_sanitize_url,
    parse_ssl_cert_reqs,
    parse_url,
    safequote,
    sanitize_url,
    url_to_parts,
    urlparts,
)

#: Celery and its backends import it by this name.
_parse_url = url_to_parts

__all__ = [
    "as_url",
    "maybe_sanitize_url",
    "parse_ssl_cert_reqs",
    "parse_url",
    "safequote",
    "sanitize_url",
    "url_to_parts",
    "urlparts",
]
