#!/bin/sh
# Run the programs of all three steps on one queue until Ctrl-C or SIGTERM, then stop them gracefully.
trap 'kill $before $changed $rewritten 2>/dev/null' INT TERM
python before/worker.py & before=$!
python imports_changed/worker.py & changed=$!
(cd rewritten && exec greenconn run worker) & rewritten=$!
for step in before imports_changed rewritten; do
    python $step/publish.py
done
echo "published 90 images"
wait $before $changed $rewritten     # a signal ends this wait, not the programs
wait
