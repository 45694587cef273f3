#!/bin/sh
# Start the service, call it, and stop it gracefully.
greenconn run service --processes 2 & service=$!
trap 'kill $service; wait $service' EXIT
trap 'exit 1' INT TERM
python client.py
