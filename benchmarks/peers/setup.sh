#!/usr/bin/env bash
# Sets up a tool we compare with, in an environment of its own beside this file, or in a folder: setup.sh PEER [FOLDER]
set -euo pipefail
known="autofaiss, clip-client, clip-retrieval, dalle2-pytorch, prior-fixtures, tables"
peer="${1:?name one: $known}"
here="$(cd "$(dirname "$0")" && pwd)"
cd "${2:-$here}"

# What DALLE2-pytorch's priors computed changed between these; the last one is the environment's.
releases=(0.16.0 0.16.1 0.16.2 0.16.10 0.23.1 1.1.0 1.4.3 1.10.5 1.10.8)
if [ "$peer" = prior-fixtures ]; then
  # Old releases beside the environment's dependencies: of their own ones only einops-exts is missing there.
  old=dalle2-pytorch/old
  mkdir -p "$old"
  [ -d "$old/common" ] || dalle2-pytorch/bin/pip install --quiet --no-deps --target "$old/common" einops-exts==0.0.4
  made=$(mktemp -d)
  for release in "${releases[@]}"; do
    [ -d "$old/$release" ] || dalle2-pytorch/bin/pip install --quiet --no-deps --target "$old/$release" "dalle2-pytorch==$release"
    PYTHONPATH="$old/$release:$old/common" dalle2-pytorch/bin/python "$here/make_prior_fixtures.py" "$made"
  done
  dalle2-pytorch/bin/python "$here/make_prior_fixtures.py" "$made"
  tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cJf "$here/../../tests/oracles/dalle2_pytorch_priors.tar.xz" -C "$made" .
  rm -r "$made"
  exit
fi

case "$peer" in
  # Its file clip_client.py alone, which needs no more: for `embedpipe serve`.
  clip-client) packages=(requests) ;;
  # setuptools < 81: the CLIP package of both imports pkg_resources, which later ones dropped.
  clip-retrieval) packages=("clip-retrieval==2.45.0" "embedding-reader==1.8.1" "setuptools<81" torch torchvision) ;;
  dalle2-pytorch) packages=("dalle2-pytorch==1.15.6" "setuptools<81" torch torchvision) ;;
  # Readers of tables: exports are opened with them.
  tables) packages=(duckdb pyspark lancedb pandas pyarrow) ;;
  autofaiss) packages=("autofaiss==2.18.0" "pyarrow<19") ;;
  *) echo "no peer '$peer'; known: $known" >&2; exit 2 ;;
esac
python3 -m venv "$peer"
"$peer/bin/pip" install --quiet "${packages[@]}"
[ "$peer" != clip-client ] || "$peer/bin/pip" install --quiet --no-deps clip-retrieval==2.45.0
"$peer/bin/pip" list --format=freeze > "$peer/installed.txt"
