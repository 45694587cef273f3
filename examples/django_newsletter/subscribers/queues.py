"""The queue of new subscribers, which the outbox publishes to and the consumer reads."""

from greenconn import Queue

#: Subscribers who cannot be welcomed are kept in welcome.dead.
WELCOME = Queue("welcome", dead_letter=True)
