#!/bin/sh
# Run both programs until Ctrl-C or SIGTERM, then stop them gracefully.
set -e
python manage.py migrate --verbosity 0
trap 'kill $consumers $web 2>/dev/null || true' INT TERM
python manage.py runconsumers --processes 2 & consumers=$!
gunicorn & web=$!
wait $consumers $web || true     # a signal ends this wait, not the programs
wait
