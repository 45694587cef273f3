"""The endpoints of services, from botocore and the files of AWS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from greenconn._version import __version__
from greenconn.green.threadpool import in_threadpool
from greenconn.transport.SQS.service import Endpoint

__all__ = ["find_endpoint"]


def find_endpoint(
    service: str,
    *,
    region: str | None,
    url: str | None,
    is_secure: bool,
    config: Mapping[str, Any],
    default_region: str,
) -> Endpoint:
    """Ask botocore.  May switch: it reads large files, in a thread.

    Arguments:
        region: None: that of the environment or of AWS' files.
        url: None: what botocore has for the region, unless the environment or AWS' files say other.

    Raises:
        ValueError: *config* or *region* cannot be.
    """

    def ask() -> tuple[str, str]:
        session = botocore.session.Session()
        named = region or session.get_config_variable("region") or default_region
        if url is not None:
            return url, named
        client = session.create_client(
            service,
            region_name=named,
            use_ssl=is_secure,
            config=Config(**config),
            # Any will do: it signs nothing, and must not go and look for credentials.
            aws_access_key_id="-",
            aws_secret_access_key="-",
        )
        return client.meta.endpoint_url, client.meta.region_name

    try:
        found, where = in_threadpool(ask)
    except (BotoCoreError, TypeError) as exc:
        raise ValueError(f"no endpoint of {service}: {exc}") from None
    extra = config.get("user_agent_extra")
    agent = f"greenconn/{__version__}"
    return Endpoint(service, found, where, f"{agent} {extra}" if extra else agent)
