from gevent import monkey

monkey.patch_all()

import gevent
from kombu import Connection
from kombu.pools import producers
from queues import IMAGES, THUMBNAILS, URL


def publish(connection, number):
    with producers[connection].acquire(block=True, timeout=30) as producer:
        producer.publish(
            {"image": f"before-{number}.png"},
            exchange=IMAGES,
            routing_key="thumbnail",
            declare=[THUMBNAILS],
            retry=True,
            retry_policy={"max_retries": 5},
        )


connection = Connection(URL)
gevent.joinall(
    [gevent.spawn(publish, connection, number) for number in range(30)], raise_error=True
)
