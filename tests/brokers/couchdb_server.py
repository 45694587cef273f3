"""A server of one's own that speaks CouchDB's protocol: CouchDB 1.6, or pouchdb-server."""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import pbkdf2_hmac
from pathlib import Path

from tests.brokers import older
from tests.brokers.keeper import Keeper
from tests.brokers.pouchdb import CouchServer, PouchDB

#: Without ``nodelay``, which is the default of CouchDB 2, each reply takes 40 ms longer.
CONFIG = """\
[couchdb]
database_dir = {folder}
view_index_dir = {folder}
uri_file = {folder}/couch.uri
[httpd]
port = {port}
socket_options = [{{nodelay, true}}]
[log]
file = {folder}/couch.log
level = error
[admins]
{login}
"""
#: Where the package has its part of Erlang's libraries and its settings.
LIBRARIES = "/usr/lib/x86_64-linux-gnu/couchdb/erlang/lib"
SETTINGS = "/etc/couchdb/default.ini"


class CouchDB(CouchServer):
    """A CouchDB that this process owns; its data survive its end.

    Arguments:
        is_kept: no difference; see :class:`tests.brokers.pouchdb.PouchDB`.
        login: user and password of the administrator; without them everybody is.

    Raises:
        NoBroker: the program is not to be had.
    """

    name = "couchdb"
    #: It listens before, and closes connections of that time.
    ready = b"Apache CouchDB has started"

    def __init__(
        self, keeper: Keeper, is_kept: bool = False, login: tuple[str, str] | None = None
    ) -> None:
        self._program = older.find(older.COUCHDB, keeper.directory)
        super().__init__(keeper, login)
        admin = "" if login is None else f"{login[0]} = {_hashed(login[1])}"
        config = CONFIG.format(folder=self.directory, port=self.port, login=admin)
        (self.directory / "local.ini").write_text(config)

    def command(self) -> list[str | Path]:
        """The program and its arguments."""
        ini = self.directory / "local.ini"
        options = (
            "+Bd -noinput -os_mon start_memsup false start_cpu_sup false -sasl errlog_type error"
        )
        command: list[str | Path] = [self._program, *options.split(), "+K", "true", "+A", "4"]
        return [*command, "-env", "ERL_LIBS", LIBRARIES, "-couch_ini", SETTINGS, ini, "-s", "couch"]

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        return {**os.environ, "HOME": str(self.directory)}


def _hashed(password: str) -> str:
    """Return a password as CouchDB keeps it."""
    return f"-pbkdf2-{pbkdf2_hmac('sha1', password.encode(), b'salt', 10).hex()},salt,10"


#: What the environment asks for.
KIND: Callable[..., CouchServer] = CouchDB if older.is_wanted() else PouchDB
