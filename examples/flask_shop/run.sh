#!/bin/sh
# Run the three programs until Ctrl-C or SIGTERM, then stop them gracefully.
set -e
flask --app shop.web init-db
trap 'kill $worker $relay $web 2>/dev/null || true' INT TERM
greenconn run shop.tasks --processes 2 & worker=$!
greenconn run shop.relay & relay=$!
gunicorn & web=$!
wait $worker $relay $web || true     # a signal ends this wait, not the programs
wait
