"""A shop that loses no order."""
