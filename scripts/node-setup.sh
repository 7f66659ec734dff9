#!/bin/sh
# Makes a machine of a cluster ready: the same pinned environment on each, from the wheel and the constraints beside this
# script; the local NVMe disk as /scratch; and an end to its life. Does nothing a second time.
#   RAYLTH_LIFETIME_HOURS   after which the machine shuts itself down, whatever Ray or the laptop do (default 48; 0: never)
#   RAYLTH_SCRATCH          where its own disk is to be found (default /scratch; empty: nowhere)
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo -n"

# A hard end, which the cloud takes for termination (InstanceInitiatedShutdownBehavior) or at least stops counting hours.
lifetime=${RAYLTH_LIFETIME_HOURS:-48}
if [ "$lifetime" != 0 ] && command -v shutdown >/dev/null && [ ! -e /run/raylth-lifetime ]; then
  $as_root shutdown -P "+$((lifetime * 60))" >/dev/null 2>&1 && $as_root touch /run/raylth-lifetime
fi

# A machine that has just begun still installs, and mounts its disk.
! command -v cloud-init >/dev/null || cloud-init status --wait >/dev/null 2>&1 || true
! systemctl cat dlami-nvme >/dev/null 2>&1 || $as_root systemctl start dlami-nvme || true

# The disk that comes with the machine: its images mount it at /opt/dlami/nvme, others leave it without a file system.
scratch=${RAYLTH_SCRATCH-/scratch}
if [ -n "$scratch" ] && [ ! -e "$scratch" ]; then
  if mountpoint -q /opt/dlami/nvme 2>/dev/null; then
    $as_root ln -s /opt/dlami/nvme "$scratch"
  else
    $as_root mkdir -p "$scratch" || { echo "$scratch cannot be made: stages that use it will say so" >&2; scratch=""; }
    disk=$(lsblk -dnpo NAME,MODEL 2>/dev/null | awk '/Instance Storage|nvme_card/ {print $1; exit}')
    if [ -n "$scratch" ] && [ -n "$disk" ] && [ -z "$(lsblk -no MOUNTPOINTS "$disk" | tr -d '[:space:]')" ]; then
      $as_root mkfs.ext4 -q -F "$disk"
      $as_root mount "$disk" "$scratch"
    fi
  fi
  [ -z "$scratch" ] || $as_root chmod 1777 "$scratch/."
fi

# For ray down, ray exec and people who log in.
path="export PATH=$here/venv/bin:\$PATH"
grep -qxF "$path" "$HOME/.bashrc" 2>/dev/null || echo "$path" >>"$HOME/.bashrc"

wheel=$(ls -t "$here"/dist/raylth-*.whl 2>/dev/null | head -n 1)
[ -n "$wheel" ] || { echo "no wheel in $here/dist: run make cluster-files before ray up" >&2; exit 2; }
wanted=$(cat "$wheel" "$here/constraints.txt" | sha256sum)
[ "$(cat "$here/environment" 2>/dev/null)" = "$wanted" ] && exit 0

python=""
for name in python3.13 python3.12 python3.11 python3; do
  if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python=$name; break; fi
done
[ -n "$python" ] || { echo "Python 3.11 or newer is needed on every machine" >&2; exit 2; }
if ! "$python" -c 'import ensurepip, sysconfig, os; sys_h = sysconfig.get_path("include") + "/Python.h"; assert os.path.exists(sys_h)' 2>/dev/null; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  $as_root apt-get update -qq -o DPkg::Lock::Timeout=600
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=600 "python$version-venv" "python$version-dev" rsync >/dev/null
fi
sh "$here/scripts/packages.sh" ffcv
"$python" -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$wheel"
"$here/venv/bin/pip" install --quiet --disable-pip-version-check -c "$here/constraints.txt" "$wheel[imagenet,clouds]"
echo "$wanted" >"$here/environment"
