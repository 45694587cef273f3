"""Amazon SQS (kombu's path and spelling)."""

from greenconn.importing import needed

needed("botocore", "botocore", "sqs")

# ruff: noqa: E402 - what is below stands on it
from greenconn.transport.SQS.envelope import LONGEST_DELAY as MAX_DELAY_SECONDS
from greenconn.transport.SQS.queues import SQS_MAX_MESSAGES
from greenconn.transport.SQS.service import (
    AccessDeniedQueueException,
    DoesNotExistQueueException,
    InvalidQueueException,
    UndefinedQueueException,
)
from greenconn.transport.SQS.transport import Channel, Transport

__all__ = [
    "MAX_DELAY_SECONDS",
    "SQS_MAX_MESSAGES",
    "AccessDeniedQueueException",
    "Channel",
    "DoesNotExistQueueException",
    "InvalidQueueException",
    "Transport",
    "UndefinedQueueException",
]
