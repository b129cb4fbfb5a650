#!/usr/bin/env bash
# Sets up a tool we compare with, in an environment of its own beside this file, or in a folder: setup.sh PEER [FOLDER]
set -euo pipefail
peer="${1:?name a peer: clip-retrieval, dalle2-pytorch or tables}"
cd "${2:-$(dirname "$0")}"
case "$peer" in
  # setuptools < 81: its CLIP package imports pkg_resources, which later ones dropped.
  clip-retrieval) packages=("clip-retrieval==2.45.0" "embedding-reader==1.8.1" "setuptools<81" torch torchvision) ;;
  dalle2-pytorch) packages=("dalle2-pytorch==1.15.6" "setuptools<81" torch torchvision) ;;
  # Readers of tables: exports are opened with them.
  tables) packages=(duckdb pyspark lancedb pandas pyarrow) ;;
  autofaiss) packages=("autofaiss==2.18.0" "pyarrow<19") ;;
  *) echo "no peer '$peer'; known: autofaiss, clip-retrieval, dalle2-pytorch, tables" >&2; exit 2 ;;
esac
python3 -m venv "$peer"
"$peer/bin/pip" install --quiet "${packages[@]}"
"$peer/bin/pip" list --format=freeze > "$peer/installed.txt"
