#!/bin/sh
# The system packages that FFCV is built with. Installs what is missing where it may (root, or sudo without a password),
# and says what to run where it may not.
set -eu
packages="g++ pkg-config libopencv-dev libturbojpeg0-dev"
if command -v g++ >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "FFCV needs a C++ compiler, pkg-config, OpenCV 4 and libturbojpeg with their headers (Debian: $packages)" >&2
  exit 1
fi
if [ "$(id -u)" = 0 ]; then
  as_root=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root="sudo -n"
else
  echo "FFCV needs system packages, and this is not root: sudo apt-get install $packages" >&2
  exit 1
fi
$as_root apt-get update -qq -o DPkg::Lock::Timeout=600
# shellcheck disable=SC2086 # one word per package
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=600 --no-install-recommends $packages >/dev/null
