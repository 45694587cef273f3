from gevent import monkey

monkey.patch_all()

import logging
import signal
import time

from greenconn import Connection
from greenconn.mixins import ConsumerMixin
from queues import THUMBNAILS, URL

logger = logging.getLogger(__name__)


class Worker(ConsumerMixin):
    def __init__(self, connection):
        self.connection = connection

    def get_consumers(self, Consumer, channel):
        return [Consumer([THUMBNAILS], callbacks=[self.on_image], prefetch_count=10)]

    def on_image(self, body, message):
        try:
            time.sleep(0.05)  # as a program that makes thumbnails would
            print("imports changed: thumbnail of", body["image"], flush=True)
        except Exception:
            logger.exception("no thumbnail of %r", body)
            message.reject()
        else:
            message.ack()

    def stop(self, *args):
        self.should_stop = True


with Connection(URL, heartbeat=30) as connection:
    worker = Worker(connection)
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGINT, worker.stop)
    worker.run()
