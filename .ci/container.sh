#!/usr/bin/env bash
# Build the image really and run studies in it, without a Docker daemon: Debian's buildah, podman and runc, on a
# Debian base made by mmdebstrap, with the CPU lock. Needs root on Debian or Ubuntu, and about 8 GB of disk.
#
# What is made in EMOE_CI_CACHE (base and layers) makes the next run quicker. The machine's pip configuration and
# CA go in as build secrets, its folder of wheels ($PIP_FIND_LINKS) as a mount.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
cache=${EMOE_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/emoe-container}
python=$repository/.venv/bin/python
started=$SECONDS
step() { echo "== [$((SECONDS - started)) s] $*"; }
fail() { echo "FAIL: $*" >&2; exit 1; }
skip() {
  echo "************************************************************************" >&2
  echo "SKIPPED, the container was NOT tested: $*" >&2
  echo "************************************************************************" >&2
  exit 0
}

# --- tools ---------------------------------------------------------------------------------------------------------
[ "$(id -u)" = 0 ] || skip "this needs root (buildah, mmdebstrap)."
command -v apt-get >/dev/null || skip "this machine is not Debian or Ubuntu."
make --no-print-directory setup
tools=(buildah podman runc netavark mmdebstrap)
missing=()
for tool in "${tools[@]}"; do dpkg -s "$tool" >/dev/null 2>&1 || missing+=("$tool"); done
if [ ${#missing[@]} -gt 0 ]; then
  step "installing ${missing[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"; } \
    >/dev/null 2>&1 || skip "the Debian packages ${missing[*]} cannot be had."
fi

# --- storage and configuration of its own --------------------------------------------------------------------------
mkdir -p "$cache"
work=$(mktemp -d "$cache/run.XXXXXX")
export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf TMPDIR=$work
cat >"$CONTAINERS_CONF" <<END
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=8192:8192"]
netns = "host"
[network]
network_backend = "netavark"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
cat >"$CONTAINERS_STORAGE_CONF" <<END
[storage]
driver = "overlay"
graphroot = "$cache/storage"
runroot = "$work/runroot"
END
cleanup() {
  podman image unmount --all --force >/dev/null 2>&1 || true
  podman rm --all --force --time 0 --volumes >/dev/null 2>&1 || true
  podman volume prune --force >/dev/null 2>&1 || true
  buildah rm --all >/dev/null 2>&1 || true
  umount --recursive "$cache/storage/overlay" 2>/dev/null || true
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT

# --- base ----------------------------------------------------------------------------------------------------------
if ! buildah inspect --type image localhost/emoe-base >/dev/null 2>&1; then
  step "making the Debian base"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$work/base.tar" \
    "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" || skip "Debian's packages cannot be had."
  base=$(buildah from scratch)
  buildah add --quiet "$base" "$work/base.tar" / >/dev/null
  buildah commit --quiet "$base" localhost/emoe-base >/dev/null
  buildah rm "$base" >/dev/null
  rm "$work/base.tar"
fi

# --- build ---------------------------------------------------------------------------------------------------------
build() { # TAG ARGUMENTS...
  local tag=$1 options=()
  shift
  [ ! -s /etc/pip.conf ] || options+=(--secret "id=pipconf,src=/etc/pip.conf")
  ca=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
  [ ! -s "$ca" ] || options+=(--secret "id=ca,src=$ca")
  [ ! -d "${PIP_FIND_LINKS:-}" ] || options+=(-v "$PIP_FIND_LINKS:/wheels:ro" --build-arg WHEELS=/wheels)
  buildah bud --isolation chroot --format docker --timestamp 0 "${options[@]}" \
    --build-arg BASE_IMAGE=localhost/emoe-base --build-arg LOCK=cpu \
    --build-arg REVISION="$(git rev-parse HEAD)" --tag "$tag" "$@" . >"$work/build.log" 2>&1 ||
    { tail -40 "$work/build.log" >&2; fail "the image $tag was not built."; }
}

step "building the image"
build localhost/emoe --layers

# --- what the image must not hold ----------------------------------------------------------------------------------
step "looking through the image"
inside() { podman run --rm --no-healthcheck "$@"; }
root=$(podman image mount localhost/emoe)
folders=$(podman image inspect localhost/emoe --format '{{.GraphDriver.Data.UpperDir}}:{{.GraphDriver.Data.LowerDir}}')
for layer in ${folders//:/ }; do
  [ -d "$layer" ] || fail "the layer $layer cannot be looked into."
  for path in root/.cache home/emoe/.cache etc/pip.conf run/secrets/pip.conf run/secrets/ca.crt wheels emoe/.venv \
    emoe/.venv-vllm emoe/data/train emoe/.dvc/cache; do
    if [ -n "$(find "$layer/$path" -type f -size +0 -print -quit 2>/dev/null)" ]; then
      fail "a layer holds $path."
    fi
  done
  [ -z "$(find "$layer" -xdev \( -name '*.whl' -o -name '.netrc' -o -name '.env' \) -not -path '*/ensurepip/*' \
    -not -path '*/python-wheels/*' -type f -print -quit)" ] || fail "a layer holds wheels or credentials."
done
for path in "$repository" "$cache" "${PIP_FIND_LINKS:-/no/wheels}"; do
  if podman image inspect --format '{{json .Config}} {{json .History}}' localhost/emoe | grep -qF -- "$path" ||
    grep -rqF --include='*.cfg' --include='*.json' --include='*.conf' --include='*.toml' -- "$path" \
      "$root/opt/venv/pyvenv.cfg" "$root/opt/emoe" "$root/opt/venv/lib" "$root/emoe"; then
    fail "the image names a path of this machine: $path."
  fi
done
[ -z "$(find "$root/emoe" -name '*.env*' -o -path '*/.git/hooks/*' | head -1)" ] || fail "the repository holds settings."
podman image unmount localhost/emoe >/dev/null
[ "$(inside localhost/emoe id -u)" = 1000 ] || fail "the user of the image is not 1000."
[ "$(podman image inspect localhost/emoe --format '{{index .Labels "org.opencontainers.image.revision"}}')" = \
  "$(git rev-parse HEAD)" ] || fail "the label of the revision is not the commit."
inside localhost/emoe sh -c 'test -z "$(git status --porcelain)"' || fail "the baked repository is not clean."

# --- the same study inside and outside -----------------------------------------------------------------------------
step "a small study outside and inside at once, in a mounted checkout that belongs to another user"
for side in outside inside; do
  mkdir "$work/$side"
  "$python" -c 'import sys, pathlib; from tests.support.checkout import checkout; checkout(pathlib.Path(sys.argv[1]))' "$work/$side"
done
chown -R 4242:4242 "$work/inside"
make -C "$work/outside" --no-print-directory reproduce STUDY=toy VENV="$repository/.venv" >"$work/outside.log" 2>&1 &
outside=$!
chmod 711 "$work"
mounted=(--user 4242:4242 -v "$work/inside:/emoe" localhost/emoe)
inside "${mounted[@]}" make reproduce STUDY=toy >"$work/inside.log" ||
  { cat "$work/inside.log"; fail "the study failed inside."; }
wait "$outside" || { cat "$work/outside.log"; fail "the study failed outside."; }
# The page tells times, as provenance does.
hashes() {
  (cd "$1" && find artifacts paper_figures/toy dvc.lock -type f -not -name provenance.json -not -name report.html -print0 |
    sort -z | xargs -0 sha256sum)
}
hashes "$work/outside" >"$work/outside.sha256"
hashes "$work/inside" >"$work/inside.sha256"
diff "$work/outside.sha256" "$work/inside.sha256" || fail "the container's files differ from the same study's outside."
step "$(wc -l <"$work/inside.sha256") files, equal hashes"

step "dvc exp run in the mounted checkout"
inside "${mounted[@]}" dvc exp run -S 'runs.toy_e8_bad_medical.lora.rank=2' aggregate@toy >"$work/exp.log" 2>&1 ||
  { tail -20 "$work/exp.log"; fail "dvc exp run failed in the mounted checkout."; }
grep -q "Running stage 'train@toy_e8_bad_medical'" "$work/exp.log" || fail "dvc exp run trained nothing."

step "dvc exp run in the baked repository, its outputs in volumes"
volumes=(-v emoe-artifacts:/emoe/artifacts -v emoe-figures:/emoe/paper_figures -v emoe-cache:/emoe/.cache
  -v emoe-data:/emoe/data -v emoe-huggingface:/cache/huggingface)
inside "${volumes[@]}" localhost/emoe sh -c 'dvc exp run -S "studies.toy.seeds=[1]" \
  -S studies.toy.pretraining.steps=20 -S studies.toy.pretraining.warmup_steps=2 -S studies.toy.training.examples=32 \
  -S studies.toy.training.max_steps=2 -S studies.toy.training.checkpoint_every=2 \
  -S studies.toy.sampling.samples_per_prompt=1 judge@toy_e8_bad_medical && dvc exp show --json | grep -q studies &&
  touch data/writable paper_figures/writable .cache/writable "$HF_HOME/writable"' >"$work/exp.log" 2>&1 ||
  { tail -20 "$work/exp.log"; fail "dvc exp run failed in the baked repository."; }
inside "${volumes[@]}" localhost/emoe test -d artifacts/toy/verdicts/toy_e8_bad_medical ||
  fail "the volume did not keep the outputs."

step "a read-only checkout gets one sentence"
if inside --user 4343:4343 -v "$work/inside:/emoe" localhost/emoe make help >"$work/refused.log" 2>&1; then
  fail "a checkout that cannot be written was taken."
fi
grep -q 'Remedy: docker run --user 4242:4242' "$work/refused.log" || fail "$(cat "$work/refused.log")"

# --- the same image twice -------------------------------------------------------------------------------------------
layers() { buildah inspect --type image --format '{{range .OCIv1.RootFS.DiffIDs}}{{.}}{{"\n"}}{{end}}' "$1"; }
step "building it again from nothing"
build localhost/emoe-again --layers --no-cache
[ -n "$(layers localhost/emoe)" ] || fail "the image's layers cannot be listed."
diff <(layers localhost/emoe) <(layers localhost/emoe-again) || fail "two builds of the same files differ in their layers."
step "two builds, equal layers: $(layers localhost/emoe | wc -l)"

step "PASS: the container builds, twice the same, and reproduces a study to the byte"
