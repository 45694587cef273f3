from greenconn import Exchange, Queue

# Declared as before: RabbitMQ refuses a queue whose arguments have changed.
IMAGES = Exchange("images", type="direct")
THUMBNAILS = Queue("thumbnails", IMAGES, routing_key="thumbnail")
