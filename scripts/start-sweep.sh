#!/bin/sh
# Starts a sweep on the head, where it continues when nobody is logged in: start-sweep.sh FILE [key.path=value ...], with FILE in
# ~/raylth/sent: on the Ray of the cluster, or not at all. Ends when the sweep trains, with status 0, or with the sweep's own status when that ends before.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
file=$1
shift
log="sent/${file%.*}.log"
setsid nohup venv/bin/python -m raylth.sweep "sent/$file" "$@" --address auto >"$log" 2>&1 </dev/null &
sweep=$!
turns=0
while kill -0 "$sweep" 2>/dev/null && ! grep -q "stages to run" "$log" && [ "$turns" -lt 120 ]; do
  sleep 0.5
  turns=$((turns + 1))
done
cat "$log"
kill -0 "$sweep" 2>/dev/null || wait "$sweep"
