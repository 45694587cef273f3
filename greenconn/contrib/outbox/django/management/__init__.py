"""Commands of ``manage.py``; each is in the module of its name."""
