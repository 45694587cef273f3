"""Runs a module (Celery's, or a client of it) with greenconn in kombu's stead."""

from __future__ import annotations

import runpy
import sys

from greenconn.compat import install_as_kombu

install_as_kombu()
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
