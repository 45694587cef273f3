"""The outbox of a Django project.

With ``"greenconn.contrib.outbox.django"`` in ``INSTALLED_APPS``, after ``manage.py migrate``::

    from greenconn.contrib.outbox.django import publish

    with transaction.atomic():
        order = Order.objects.create(number=7)
        publish("orders", {"number": 7}, key=f"customer-{order.customer_id}")

``manage.py relayoutbox`` publishes what was committed; so does ``app.service(relay())`` beside the
consumers of :data:`greenconn.contrib.django.app`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django.apps import apps as registry  # "apps" is a module of this package
from django.db import DEFAULT_DB_ALIAS, connections, router, transaction
from django.db.models import Count, F, Min, Q

from greenconn.contrib.outbox import (
    CHANNEL,
    Backlog,
    Lease,
    OutboxStore,
    PendingMessage,
    conninfo_of,
    row_of,
)
from greenconn.contrib.outbox.relay import Relay, RelayOptions, has_relays, wake_relays
from greenconn.publishing.publisher import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.publishing.publisher import PublishArguments

__all__ = ["publish", "relay"]

LABEL = "greenconn_outbox"


def publish(
    target: Target,
    body: Any,
    *,
    key: str | None = None,
    using: str | None = None,
    **options: Unpack[PublishArguments],
) -> str:
    """Write a message into the transaction; a relay publishes it after the commit.  May switch.

    Arguments:
        target, body, options: as for :func:`greenconn.publish`.
        key: messages of one key are published in the order in which they were written; None: in any.
        using: the database; None is that of the project's routers.

    Returns:
        Its ``message_id``.

    Raises:
        EncodeError: the body cannot be serialised.
        TypeError, ValueError: wrong arguments.
    """
    row = row_of(target, body, key, options)
    model = registry.get_model(LABEL, "OutboxMessage")
    alias = using or router.db_for_write(model)
    model.objects.using(alias).create(**asdict(row))
    if connections[alias].vendor == "postgresql":
        with connections[alias].cursor() as cursor:  # at the commit
            cursor.execute("SELECT pg_notify(%s, %s)", (CHANNEL, model._meta.db_table))
    if has_relays():
        transaction.on_commit(wake_relays, using=alias)
    return row.message_id


def relay(using: str = DEFAULT_DB_ALIAS, **options: Any) -> Relay:
    """Return a relay; see :class:`~greenconn.contrib.outbox.relay.RelayOptions` for *options*.

    Arguments:
        using: the database.
    """
    return Relay(_Store(using), RelayOptions(**options))


class _Store(OutboxStore):
    """The tables of the outbox in one of the project's databases.

    A connection that is broken, or too old, is closed before it is used again.
    """

    def __init__(self, using: str) -> None:
        self._using = using

    def table(self) -> str:
        return str(registry.get_model(LABEL, "OutboxMessage")._meta.db_table)

    def conninfo(self) -> dict[str, Any] | None:
        connection = connections[self._using]
        if connection.vendor != "postgresql":
            return None
        connection.close_if_unusable_or_obsolete()
        connection.ensure_connection()
        return conninfo_of(connection.connection)

    @property
    def _messages(self) -> Any:
        return self._rows("OutboxMessage")

    @property
    def _leases(self) -> Any:
        return self._rows("OutboxLease")

    def _rows(self, model: str) -> Any:
        connections[self._using].close_if_unusable_or_obsolete()
        return registry.get_model(LABEL, model).objects.using(self._using)

    def pending(self, partitions: Collection[int], now: int, limit: int) -> list[PendingMessage]:
        messages = self._messages
        blocked = messages.filter(retry_ms__gt=now, ordering_key__isnull=False)
        rows = messages.filter(
            Q(ordering_key__isnull=True) | ~Q(ordering_key__in=blocked.values("ordering_key")),
            sent_ms__isnull=True,
            retry_ms__lte=now,
            partition__in=partitions,
        ).order_by("id")
        names = ("id", "partition", "ordering_key", "attempts", "envelope", "body")
        return [
            PendingMessage(**{**row, "body": bytes(row["body"])})
            for row in rows.values(*names)[:limit]
        ]

    def mark_sent(self, ids: Sequence[int], now: int) -> None:
        self._messages.filter(id__in=ids).update(sent_ms=now, retry_ms=0)

    def mark_failed(self, id: int, error: str, retry: int) -> None:
        self._messages.filter(id=id).update(retry_ms=retry, error=error, attempts=F("attempts") + 1)

    def prune(self, before: int, limit: int) -> int:
        messages = self._messages
        ids = list(messages.filter(sent_ms__lt=before).values_list("id", flat=True)[:limit])
        if ids:
            messages.filter(id__in=ids).delete()
        return len(ids)

    def backlog(self) -> Backlog:
        waiting = self._messages.filter(sent_ms__isnull=True)
        return Backlog(
            **waiting.aggregate(
                waiting=Count("id"),
                failing=Count("id", filter=Q(retry_ms__gt=0)),
                oldest_ms=Min("created_ms"),
            )
        )

    def leases(self) -> list[Lease]:
        return [Lease(**row) for row in self._leases.values("name", "owner", "beat")]

    def add_leases(self, leases: Collection[Lease]) -> None:
        rows = self._leases
        rows.bulk_create([rows.model(**asdict(each)) for each in leases], ignore_conflicts=True)

    def renew_leases(self, owner: str) -> None:
        self._leases.filter(owner=owner).update(beat=F("beat") + 1)

    def take_leases(self, leases: Collection[Lease], owner: str) -> None:
        rows = self._leases
        with transaction.atomic(using=self._using):
            for lease in leases:
                rows.filter(**asdict(lease)).update(owner=owner, beat=lease.beat + 1)

    def free_leases(self, names: Collection[str], owner: str) -> None:
        self._leases.filter(name__in=names, owner=owner).update(owner="", beat=F("beat") + 1)

    def delete_leases(self, leases: Collection[Lease]) -> None:
        rows = self._leases
        with transaction.atomic(using=self._using):
            for lease in leases:
                rows.filter(**asdict(lease)).delete()

    def close(self) -> None:
        connections[self._using].close()
