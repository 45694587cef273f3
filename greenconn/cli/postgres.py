"""``greenconn postgres``: the tables that a broker in PostgreSQL needs."""

from __future__ import annotations

import click

from greenconn.cli.options import CommandGroup, timeout_option, url_argument


@click.group("postgres", cls=CommandGroup)
def postgres() -> None:
    """Create the tables of a broker in PostgreSQL, or bring them up to date.

    A connection does that by itself, where its role may create a schema.

    \b
    Example:
      greenconn postgres migrate postgresql://owner@db/shop
      greenconn postgres migrate --sql | psql shop
    """


@postgres.command("migrate")
@url_argument
@click.option("--sql", "is_sql", is_flag=True, help="Print the statements, and connect to nothing.")
@click.option("--schema", help="Where the tables are.  [default: that of the URL, else greenconn]")
@click.option(
    "--from",
    "version",
    type=click.IntRange(min=0),
    default=0,
    help="With --sql: the version that is there; 0 is none.  [default: 0]",
)
@timeout_option
def migrate(url: str, is_sql: bool, schema: str | None, version: int, timeout: float) -> None:
    """Create the tables, or bring them up to the version of this greenconn.

    Each version is applied in one transaction, under a lock: any number of processes may do it at once.
    """
    from greenconn.cli.broker import connection_to, interruptible
    from greenconn.transport.postgresql import Transport
    from greenconn.transport.postgresql.schema import VERSION, statements

    if version and not is_sql:
        raise click.UsageError("--from goes with --sql: a database knows its version")
    if is_sql:
        if version > VERSION:
            raise click.BadParameter(
                f"{version} is later than the last one, {VERSION}", param_hint="--from"
            )
        name = schema
        if name is None:
            transport = connection_to(url).transport
            name = transport.options.schema if isinstance(transport, Transport) else "greenconn"
        click.echo("BEGIN;")
        for statement in statements(name, version):
            click.echo(f"{statement};")
        click.echo("COMMIT;")
        return
    connection = connection_to(url, timeout)
    if not isinstance(connection.transport, Transport):
        raise click.BadParameter(
            f"must be of PostgreSQL (postgresql://), got {connection.as_uri()}", param_hint="URL"
        )
    if schema is not None:
        connection = connection.clone(transport_options={"schema": schema})
    with interruptible(), connection:
        connection.connect()
        click.echo(f"schema {connection.transport.options.schema}: version {VERSION}")
