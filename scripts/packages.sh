#!/bin/sh
# The system packages of a part of the project: sh scripts/packages.sh ffcv|cluster|browser
# Installs what is missing where it may (root, or sudo without a password), and says what to run where it may not.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
have() { for program in "$@"; do command -v "$program" >/dev/null || return 1; done; }

case "${1:-}" in
  ffcv)
    what="FFCV needs a C++ compiler, pkg-config, OpenCV 4 and libturbojpeg with their headers"
    packages="g++ pkg-config libopencv-dev libturbojpeg0-dev"
    if have g++ pkg-config && pkg-config --exists opencv4 libturbojpeg; then exit 0; fi
    ;;
  cluster)
    what="Machines made of namespaces need sshd, rsync, ip, unshare and nsenter; a Slurm on them its daemons and munge"
    packages="openssh-server openssh-client rsync iproute2 util-linux slurmctld slurmd slurm-client munge"
    if have sshd ssh-keygen rsync ip unshare nsenter slurmctld slurmd sbatch munged; then exit 0; fi
    ;;
  browser)
    what="The report's page is looked at in Chromium"
    packages="chromium"
    if have chromium || have chromium-browser || have google-chrome; then exit 0; fi
    ;;
  *)
    echo "usage: sh scripts/packages.sh ffcv|cluster|browser" >&2
    exit 2
    ;;
esac
if ! have apt-get; then
  echo "$what (Debian: $packages)" >&2
  exit 1
fi
if [ "$(id -u)" = 0 ]; then
  as_root=""
elif have sudo && sudo -n true 2>/dev/null; then
  as_root="sudo -n"
else
  echo "$what, and this is not root: sudo apt-get install $packages" >&2
  exit 1
fi
$as_root apt-get update -qq -o DPkg::Lock::Timeout=600
# shellcheck disable=SC2086 # one word per package
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=600 --no-install-recommends $packages >/dev/null
