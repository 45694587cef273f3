"""The works on Redis."""
