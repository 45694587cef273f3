"""CouchDB: ``couchdb://host:5984/database``."""

from greenconn.transport.couchdb.transport import Channel, Transport

__all__ = ["Channel", "Transport"]
