"""The tables of the outbox.  Rows are written by ``publish`` and changed by relays."""

from __future__ import annotations

from django.db import models


class OutboxMessage(models.Model):
    """A message that is to be published, or was.

    ``sent_ms`` is None until the broker has it; ``retry_ms`` is above 0 once the broker has refused it,
    and says when it is tried again.  Times are milliseconds since 1970.
    """

    message_id = models.CharField(max_length=255)
    partition = models.SmallIntegerField()
    ordering_key = models.CharField(max_length=255, null=True)
    target = models.CharField(max_length=255)
    envelope = models.TextField()
    body = models.BinaryField()
    created_ms = models.BigIntegerField()
    sent_ms = models.BigIntegerField(null=True)
    retry_ms = models.BigIntegerField(default=0)
    attempts = models.IntegerField(default=0)
    error = models.TextField(null=True)

    class Meta:
        """Its indexes."""

        indexes = (
            models.Index(fields=("sent_ms", "id"), name="greenconn_outbox_sent"),
            models.Index(fields=("retry_ms",), name="greenconn_outbox_retry"),
        )

    def __str__(self) -> str:
        return f"message {self.pk} to {self.target}"


class OutboxLease(models.Model):
    """A partition of the outbox and the relay that holds it, or the presence of a relay."""

    name = models.CharField(max_length=64, primary_key=True)
    owner = models.CharField(max_length=64)
    beat = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.name} of {self.owner}"
