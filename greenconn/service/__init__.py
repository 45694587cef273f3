"""Programs and services: applications and their processes, RPC, periodic calls, health and shutdown.

The process manager (:mod:`greenconn.service.program`) must not import gevent, so this module imports
nothing.
"""
