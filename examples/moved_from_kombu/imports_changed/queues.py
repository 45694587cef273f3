import os

from greenconn import Exchange, Queue

URL = os.environ.get("GREENCONN_URL", "amqp://guest:guest@localhost//")
IMAGES = Exchange("images", type="direct")
THUMBNAILS = Queue("thumbnails", IMAGES, routing_key="thumbnail")
