#!/bin/sh
# Installs this project with its extras into a virtual environment: scripts/install.sh VENV [extra,...]
# uv unpacks and compiles on all cores, in a third of pip's time; pip serves where uv does not reach the package index.
set -eu
python=$1/bin/python
what=.${2:+[$2]}
[ -x "$1/bin/uv" ] || "$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
"$1/bin/uv" pip install --quiet --python "$python" --compile-bytecode -c constraints.txt -e "$what" ||
  "$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$what"
