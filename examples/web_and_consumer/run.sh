#!/bin/sh
# Run both programs until Ctrl-C or SIGTERM, then stop them gracefully.
trap 'kill $consumer $web 2>/dev/null' INT TERM
python consumer.py & consumer=$!
python web.py & web=$!
wait $consumer $web     # a signal ends this wait, not the programs
wait
