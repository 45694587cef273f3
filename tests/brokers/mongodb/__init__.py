"""A stand-in for a MongoDB server: its wire protocol in front of mongomock.

No package registry has a real server.  What this one shows is that real pymongo, and what is built on
it, work over real sockets; how MongoDB itself behaves it shows only as far as mongomock does.
"""
