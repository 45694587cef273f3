"""The commands that drivers send, done by mongomock."""

from __future__ import annotations

import datetime
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import mongomock
from bson import ObjectId, Timestamp
from mongomock.collection import Collection
from mongomock.filtering import filter_applies
from pymongo.errors import DuplicateKeyError, PyMongoError, WriteError

from tests.brokers.mongodb.cursors import ChangeCursor, Cursor, Cursors, TailCursor

VERSION = "6.0.0"
#: Seconds that a ``getMore`` which names none waits.
AWAIT = 1.0

Document = dict[str, Any]


class Refused(Exception):
    """The command is answered with an error.

    Arguments:
        code: MongoDB's number.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def _iter_documents(self: Collection, filter: Any) -> Any:
    """What mongomock does, by the key where the filter names keys, as an index would."""
    key = filter.get("_id") if isinstance(filter, dict) else None
    if isinstance(key, dict) and set(key) == {"$in"}:
        keys = dict.fromkeys(key["$in"])
    elif isinstance(key, (ObjectId, str, int)):
        keys = {key: None}
    else:
        return [each for each in list(self._store.documents) if filter_applies(filter, each)]
    found = [self._store[each] for each in keys if each in self._store]
    return [each for each in found if filter_applies(filter, each)]


setattr(Collection, "_iter_documents", _iter_documents)  # noqa: B010 - mypy minds the plain form


class Commands:
    """A server's data and what can be done with them.  One command at a time.

    Arguments:
        address: where it listens, ``host:port``.
        replica_set: the name of the set of which it is the only member; None for a lone server.
            Only members of sets tell of changes and repeat writes.
    """

    def __init__(self, address: str, replica_set: str | None = None) -> None:
        self.address = address
        self.replica_set = replica_set
        self.databases: Any = mongomock.MongoClient(tz_aware=False)
        self.cursors = Cursors()
        self.lock = threading.Condition()
        self._capped: set[str] = set()
        self._tokens = itertools.count(1)
        #: Called with each command before it is done, in their order.
        self.note: Callable[[str, Document], None] = lambda database, command: None
        #: (session, number) -> the answer to a write that may come again.
        self._answered: dict[Any, Document] = {}

    def run(self, database: str, command: Document) -> Document:
        """Do one command.

        Raises:
            Refused: it is not known, or cannot be.
        """
        name = next(iter(command))
        method: Callable[[str, Document], Document] | None
        method = getattr(self, f"do_{name.lower()}", None)
        if method is None:
            raise Refused(59, f"no such command: {name!r} (this is a stand-in)")
        again = self._repeat_key(command)
        with self.lock:
            if again is not None and again in self._answered:
                return self._answered[again]
            self.note(database, command)
            try:
                answer: Document = method(database, command)
            except PyMongoError as exc:
                raise Refused(getattr(exc, "code", None) or 8000, str(exc)) from exc
            if self.replica_set:
                answer["operationTime"] = Timestamp(int(time.time()), next(self._tokens))
            if again is not None:
                self._answered[again] = answer
            self.lock.notify_all()
            return answer

    @staticmethod
    def _repeat_key(command: Document) -> Any:
        if "txnNumber" not in command:
            return None
        return bytes(command["lsid"]["id"]), command["txnNumber"]

    def _collection(self, database: str, command: Document) -> Any:
        return self.databases[database][next(iter(command.values()))]

    # -- about the server

    def do_hello(self, database: str, command: Document) -> Document:
        answer: Document = {
            "helloOk": True,
            "ismaster": True,
            "isWritablePrimary": True,
            "maxBsonObjectSize": 16 * 1024 * 1024,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "localTime": datetime.datetime.now(datetime.timezone.utc),
            "minWireVersion": 0,
            "maxWireVersion": 17,
            "readOnly": False,
            "logicalSessionTimeoutMinutes": 30,
            "ok": 1.0,
        }
        if self.replica_set:
            answer |= {
                "setName": self.replica_set,
                "setVersion": 1,
                "hosts": [self.address],
                "me": self.address,
                "primary": self.address,
                "secondary": False,
            }
        return answer

    do_ismaster = do_hello

    def do_ping(self, database: str, command: Document) -> Document:
        return {"ok": 1.0}

    do_endsessions = do_ping
    do_dropindexes = do_ping

    def do_buildinfo(self, database: str, command: Document) -> Document:
        numbers = [*map(int, VERSION.split(".")), 0]
        return {"version": VERSION, "versionArray": numbers, "modules": ["stand-in"], "ok": 1.0}

    # -- collections

    def do_listcollections(self, database: str, command: Document) -> Document:
        names = self.databases[database].list_collection_names()
        found = [
            {
                "name": each,
                "type": "collection",
                "options": {"capped": True} if f"{database}.{each}" in self._capped else {},
                "info": {"readOnly": False},
            }
            for each in names
        ]
        found = [each for each in found if filter_applies(command.get("filter") or {}, each)]
        return self.cursors.open(Cursor(f"{database}.$cmd.listCollections", found), len(found))

    def do_listdatabases(self, database: str, command: Document) -> Document:
        names = self.databases.list_database_names()
        return {"databases": [{"name": each} for each in names], "ok": 1.0}

    def do_create(self, database: str, command: Document) -> Document:
        name = command["create"]
        if name in self.databases[database].list_collection_names():
            raise Refused(48, f"Collection {database}.{name} already exists.")
        self.databases[database].create_collection(name)
        if command.get("capped"):
            self._capped.add(f"{database}.{name}")
        return {"ok": 1.0}

    def do_drop(self, database: str, command: Document) -> Document:
        self.databases[database].drop_collection(command["drop"])
        self._capped.discard(f"{database}.{command['drop']}")
        return {"ok": 1.0}

    def do_dropdatabase(self, database: str, command: Document) -> Document:
        self.databases.drop_database(database)
        self._capped = {each for each in self._capped if not each.startswith(f"{database}.")}
        return {"ok": 1.0}

    def do_createindexes(self, database: str, command: Document) -> Document:
        collection = self._collection(database, command)
        for index in command["indexes"]:
            options = {
                key: index[key]
                for key in ("name", "unique", "sparse", "expireAfterSeconds")
                if key in index
            }
            collection.create_index(list(index["key"].items()), **options)
        return {"ok": 1.0}

    def do_listindexes(self, database: str, command: Document) -> Document:
        found = list(self._collection(database, command).list_indexes())
        return self.cursors.open(Cursor(f"{database}.$cmd.listIndexes", found), len(found))

    # -- writing

    def do_insert(self, database: str, command: Document) -> Document:
        namespace = f"{database}.{command['insert']}"
        collection, errors, done = self._collection(database, command), [], 0
        for index, document in enumerate(command["documents"]):
            try:
                collection.insert_one(document)
            except (DuplicateKeyError, WriteError) as exc:
                errors.append({"index": index, "code": exc.code or 11000, "errmsg": str(exc)})
                if command.get("ordered", True):
                    break
            else:
                done += 1
                self._tell_insert(namespace, document)
        return {"n": done, "ok": 1.0} | ({"writeErrors": errors} if errors else {})

    def _tell_insert(self, namespace: str, document: Document) -> None:
        self.cursors.tell(lambda cursor: cursor.inserted(namespace, document))
        if self.cursors.are_changes_watched:
            self._tell_change(namespace, "insert", document, {"fullDocument": document})

    def _tell_change(self, namespace: str, kind: str, document: Document, more: Document) -> None:
        event = {
            "_id": {"_data": f"{next(self._tokens):016x}"},
            "operationType": kind,
            "documentKey": {"_id": document["_id"]},
            **more,
        }
        self.cursors.tell(lambda cursor: cursor.changed(namespace, event))

    def do_update(self, database: str, command: Document) -> Document:
        collection = self._collection(database, command)
        namespace, matched, modified, upserted = f"{database}.{command['update']}", 0, 0, []
        for index, each in enumerate(command["updates"]):
            before = self._before(collection, each["q"])
            update, upsert = each["u"], each.get("upsert", False)
            if not next(iter(update), "").startswith("$"):
                result = collection.replace_one(each["q"], update, upsert=upsert)
            elif each.get("multi"):
                result = collection.update_many(each["q"], update, upsert=upsert)
            else:
                result = collection.update_one(each["q"], update, upsert=upsert)
            self._tell_updates(namespace, collection, before)
            modified += result.modified_count
            matched += result.matched_count
            if result.upserted_id is not None:
                upserted.append({"index": index, "_id": result.upserted_id})
        answer = {"n": matched + len(upserted), "nModified": modified, "ok": 1.0}
        return answer | ({"upserted": upserted} if upserted else {})

    def _before(self, collection: Any, filter: Document) -> list[Document]:
        return list(collection.find(filter)) if self.cursors.are_changes_watched else []

    def _tell_updates(self, namespace: str, collection: Any, before: list[Document]) -> None:
        for old in before:
            new = collection.find_one({"_id": old["_id"]}) or {}
            fields = {key: value for key, value in new.items() if old.get(key) != value}
            if fields:
                change = {"updateDescription": {"updatedFields": fields}}
                self._tell_change(namespace, "update", old, change)

    def do_delete(self, database: str, command: Document) -> Document:
        collection, count = self._collection(database, command), 0
        for each in command["deletes"]:
            delete = collection.delete_one if each.get("limit") else collection.delete_many
            count += delete(each["q"]).deleted_count
        return {"n": count, "ok": 1.0}

    def do_findandmodify(self, database: str, command: Document) -> Document:
        collection = self._collection(database, command)
        options: Document = {"projection": command.get("fields")}
        if command.get("sort"):
            options["sort"] = list(command["sort"].items())
        query = command.get("query") or {}
        if command.get("remove"):
            return {"value": collection.find_one_and_delete(query, **options), "ok": 1.0}
        before = self._before(collection, query)
        change = command["update"]
        is_update = next(iter(change), "").startswith("$")
        modify = collection.find_one_and_update if is_update else collection.find_one_and_replace
        found = modify(
            query,
            change,
            upsert=command.get("upsert", False),
            return_document=bool(command.get("new")),
            **options,
        )
        self._tell_updates(f"{database}.{command['findAndModify']}", collection, before)
        return {"value": found, "ok": 1.0}

    # -- reading

    def do_find(self, database: str, command: Document) -> Document:
        namespace = f"{database}.{command['find']}"
        filter = command.get("filter") or {}
        limit = command.get("limit") or 0
        found = self._collection(database, command).find(
            filter,
            command.get("projection"),
            skip=command.get("skip") or 0,
            limit=abs(limit),
            sort=list(command["sort"].items()) if command.get("sort") else None,
        )
        if command.get("tailable"):
            if namespace not in self._capped:
                raise Refused(2, f"error processing query: tailable cursor on {namespace}")
            cursor: Cursor = TailCursor(
                namespace, found, filter, waits=bool(command.get("awaitData"))
            )
        else:
            cursor = Cursor(namespace, found)
        single = bool(command.get("singleBatch")) or limit < 0
        size = abs(limit) if single and limit else command.get("batchSize")
        return self.cursors.open(cursor, size, single=single)

    def do_getmore(self, database: str, command: Document) -> Document:
        number = command["getMore"]
        await_time = command.get("maxTimeMS", AWAIT * 1000) / 1000
        end = time.monotonic() + await_time
        while True:
            cursor = self.cursors.get(number)
            if cursor is None:
                raise Refused(43, f"cursor id {number} not found")
            if cursor.documents or not cursor.waits:
                break
            if not self.lock.wait(max(end - time.monotonic(), 0.0)):
                break
        return self.cursors.more(number, cursor, command.get("batchSize"))

    def do_killcursors(self, database: str, command: Document) -> Document:
        killed = [each for each in command["cursors"] if self.cursors.kill(each)]
        missing = [each for each in command["cursors"] if each not in killed]
        return {"cursorsKilled": killed, "cursorsNotFound": missing, "ok": 1.0}

    def do_count(self, database: str, command: Document) -> Document:
        count = self._collection(database, command).count_documents(command.get("query") or {})
        return {"n": count, "ok": 1.0}

    def do_distinct(self, database: str, command: Document) -> Document:
        collection = self._collection(database, command)
        return {"values": collection.distinct(command["key"], command.get("query")), "ok": 1.0}

    def do_aggregate(self, database: str, command: Document) -> Document:
        pipeline = command["pipeline"]
        namespace = f"{database}.{command['aggregate']}"
        size = (command.get("cursor") or {}).get("batchSize")
        if pipeline and "$changeStream" in pipeline[0]:
            if not self.replica_set:
                raise Refused(40573, "The $changeStream stage is only supported on replica sets")
            return self.cursors.open(ChangeCursor(namespace, pipeline[1:]), size)
        found = self._collection(database, command).aggregate(pipeline)
        return self.cursors.open(Cursor(namespace, found), size)
