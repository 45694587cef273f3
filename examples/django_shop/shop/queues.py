"""The queue of orders without an invoice, which the pages publish to and the consumer reads."""

from greenconn import Queue

#: Orders for which no invoice can be written are kept in invoices.dead.
INVOICES = Queue("invoices", dead_letter=True)
