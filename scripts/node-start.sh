#!/bin/sh
# Starts Ray on a machine of a cluster: node-start.sh head | worker. Nobody joins without the token; the dashboard answers the
# machine itself only.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
export RAY_AUTH_MODE=token
ray="$here/venv/bin/ray"
[ -s "$HOME/.ray/auth_token" ] || { echo "no token in ~/.ray/auth_token: run make cluster-files before ray up" >&2; exit 2; }
chmod 600 "$HOME/.ray/auth_token"
# shellcheck disable=SC3045 # both of Debian's shells know it
ulimit -n 65536 2>/dev/null || true
"$ray" stop >/dev/null 2>&1 || true
case "$1" in
  head)
    # Ray 2.60's second autoscaler asks for a refused type of machine for ever, and starts no machines of one's own.
    export RAY_enable_autoscaler_v2=0
    export RAY_AUTOSCALER_UTILIZATION_SCORER=raylth.cluster.nodes.node_scorer.score
    "$ray" start --head --port=6379 --dashboard-host=127.0.0.1 --disable-usage-stats \
      --autoscaling-config="$HOME/ray_bootstrap_config.yaml"
    ;;
  worker)
    "$ray" start --address="$RAY_HEAD_IP:6379" --disable-usage-stats
    # A spot machine that is to be taken away tells Ray, so that trainings are saved; where no cloud is, this ends at once.
    pkill -f "raylth[.]cluster[.]nodes[.]preemption_notice" || true
    setsid nohup "$here/venv/bin/python" -m raylth.cluster.nodes.preemption_notice "$RAY_HEAD_IP:6379" >"$here/notice.log" 2>&1 </dev/null &
    ;;
  *)
    echo "head or worker, not $1" >&2
    exit 2
    ;;
esac
