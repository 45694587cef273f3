"""Hello, world: one producer and one consumer on a topic exchange.  Arguments: URL, a unique name."""

import datetime
import sys

from kombu import Connection, Consumer, Exchange, Producer, Queue

url, name = sys.argv[1:]
exchange = Exchange(f"{name}.news", type="topic", durable=False, auto_delete=True)
queue = Queue(f"{name}.europe", exchange, routing_key="news.europe.*", auto_delete=True)


heard = []


def handle(body, message):
    heard.append(body)
    print("received", body["text"], "of", message.delivery_info["routing_key"].split(".")[-1])
    assert datetime.datetime.fromisoformat(body["at"])
    message.ack()


with Connection(url) as connection, connection.channel() as channel:
    with Consumer(channel, queues=[queue], callbacks=[handle], accept=["json"]):
        producer = Producer(channel, exchange=exchange, serializer="json")
        for country in ("norway", "italy"):
            body = {"text": f"hello {country}", "at": datetime.datetime.now().isoformat()}
            producer.publish(body, routing_key=f"news.europe.{country}")
        producer.publish({"text": "unheard"}, routing_key="news.asia.japan")
        while len(heard) < 2:
            connection.drain_events(timeout=30)
print("done")
