"""Processes that run an application: one in the foreground, or several that are restarted and reloaded.

The manager, :mod:`greenconn.running.processes`, must not import gevent, so nothing is imported here.
"""
