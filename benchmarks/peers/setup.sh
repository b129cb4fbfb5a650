#!/usr/bin/env bash
# Sets up a tool we compare with, in an environment of its own beside this file: setup.sh clip-retrieval
set -euo pipefail
cd "$(dirname "$0")"
peer="${1:?name a peer: clip-retrieval}"
case "$peer" in
  # setuptools < 81: its CLIP package imports pkg_resources, which later ones dropped.
  clip-retrieval) packages=("clip-retrieval==2.45.0" "embedding-reader==1.8.1" "setuptools<81" torch torchvision) ;;
  *) echo "no peer '$peer'; known: clip-retrieval" >&2; exit 2 ;;
esac
python3 -m venv "$peer"
"$peer/bin/pip" install --quiet "${packages[@]}"
"$peer/bin/pip" list --format=freeze > "$peer/installed.txt"
