import greenconn
from queues import THUMBNAILS

for number in range(30):
    # Returns when the broker has the message.
    greenconn.publish(THUMBNAILS, {"image": f"rewritten-{number}.png"})
