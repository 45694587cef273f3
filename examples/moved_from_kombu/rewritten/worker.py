import time

from queues import THUMBNAILS

import greenconn

app = greenconn.App()


@app.consumer(THUMBNAILS, concurrency=10, retry=greenconn.Retry(tries=5))
def make_thumbnail(body, message):
    time.sleep(0.05)  # greenconn run patches the standard library: other handlers run meanwhile
    print("rewritten: thumbnail of", body["image"], flush=True)
