#!/bin/sh
# Publish a thousand measurements and total them, until Ctrl-C or SIGTERM.
trap 'kill $totals $station 2>/dev/null' INT TERM
greenconn run totals & totals=$!
python station.py & station=$!
wait $totals $station     # a signal ends this wait, not the programs
wait
