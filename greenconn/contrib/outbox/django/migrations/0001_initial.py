"""The tables of the outbox."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Creates them."""

    initial = True

    dependencies = ()

    operations = (
        migrations.CreateModel(
            name="OutboxLease",
            fields=[
                (
                    "name",
                    models.CharField(max_length=64, primary_key=True, serialize=False),
                ),
                ("owner", models.CharField(max_length=64)),
                ("beat", models.BigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="OutboxMessage",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("message_id", models.CharField(max_length=255)),
                ("partition", models.SmallIntegerField()),
                ("ordering_key", models.CharField(max_length=255, null=True)),
                ("target", models.CharField(max_length=255)),
                ("envelope", models.TextField()),
                ("body", models.BinaryField()),
                ("created_ms", models.BigIntegerField()),
                ("sent_ms", models.BigIntegerField(null=True)),
                ("retry_ms", models.BigIntegerField(default=0)),
                ("attempts", models.IntegerField(default=0)),
                ("error", models.TextField(null=True)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["sent_ms", "id"], name="greenconn_outbox_sent"),
                    models.Index(fields=["retry_ms"], name="greenconn_outbox_retry"),
                ],
            },
        ),
    )
