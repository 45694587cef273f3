"""Programs with an outbox."""
