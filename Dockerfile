# The image with everything that a study needs: `docker run --gpus all --ipc=host emoe make reproduce` runs the paper's
# study where it finds an Ampere-or-newer GPU and the toy study where it finds none. (Several GPUs, and an engine's
# processes, share memory, of which a container has 64 MB by itself.)
#
#   docker build -t emoe .                                                    CUDA 13, driver >= 580 on the host
#   docker build -t emoe --build-arg BASE_IMAGE=debian:bookworm-slim --build-arg LOCK=cpu .     no GPU, 2 GB
#
# Behind a mirror or a private CA: --secret id=pipconf,src=/etc/pip.conf --secret id=ca,src=ca-bundle.crt.
# `make image-digest` compares the digest below with the registry's.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04@sha256:5dc1bca23d05bd37b011be68ec470c03b403a5da07ec3a86e41af9470e9d0cc6
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

# gpu needs Python 3.12 in the base (Ubuntu 24.04), cpu 3.11 or 3.12.
ARG LOCK=gpu

# The compiler and Python's headers are for Triton, which compiles when a model first runs.
# What differs from build to build (logs, caches) goes, and bytecode forgets the times of its sources, so that
# two builds have equal layers and a build that clamps times has bytecode that is still good.
# hadolint ignore=DL3008
RUN set -- ca-certificates git make python3 python3-venv \
    && if [ "$LOCK" = gpu ]; then set -- "$@" g++ python3-dev; fi \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" \
    && PYTHONHASHSEED=0 python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3* \
    && rm -rf /var/lib/apt/lists/* /tmp/* \
    && find /var/cache /var/log -type f -delete

COPY locks /opt/emoe/locks
# Bytecode is checked against nothing: its sources lie in the same layer and their times are not kept.
# WHEELS is a folder of wheels mounted for the build, where torch's index cannot be reached.
ARG WHEELS=
RUN --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    export PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_FIND_LINKS="$WHEELS" PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 HOME=/tmp \
        PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=0 PYC_INVALIDATION_MODE=UNCHECKED_HASH \
    && if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt SSL_CERT_FILE=/run/secrets/ca.crt; fi \
    && bash /opt/emoe/locks/setup.sh /opt/venv python3 "$LOCK" \
    && rm -rf /tmp/*

# Any user may run this image (--user), so what every user needs is open to all, like /tmp; the repository
# belongs to user 1000. git's ownership check would refuse a checkout mounted by somebody else, and
# `dvc exp run` commits, which takes a name.
RUN install -d -m 1777 /home/emoe /cache /cache/huggingface \
    && install -d -o 1000 -g 1000 /emoe \
    && git config --system safe.directory '*' \
    && git config --system user.name emoe \
    && git config --system user.email emoe@localhost
ENV PATH=/opt/venv/bin:$PATH VENV=/opt/venv LOCK=${LOCK} \
    HOME=/home/emoe USER=emoe LOGNAME=emoe \
    HF_HOME=/cache/huggingface HF_HUB_DISABLE_TELEMETRY=1 DVC_NO_ANALYTICS=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY container/entrypoint.sh /opt/emoe/entrypoint
ENTRYPOINT ["/opt/emoe/entrypoint"]
CMD ["make", "help"]
VOLUME /cache/huggingface

USER 1000:1000
WORKDIR /emoe
COPY --chown=1000:1000 . /emoe
# A repository without history, remote or settings of whoever builds: `dvc exp run` needs a commit to start from.
# The folders are there to mount volumes on: a new volume takes its owner from them.
ARG REVISION=unknown
RUN mkdir -p artifacts data .cache \
    && git init --quiet --template= --initial-branch=main \
    && git add --all \
    && GIT_AUTHOR_DATE=2000-01-01T00:00:00Z GIT_COMMITTER_DATE=2000-01-01T00:00:00Z \
        git commit --quiet --message "emoe at revision ${REVISION}" \
    # An index that remembers no times: it would differ from build to build.
    && git read-tree --empty && git read-tree HEAD

ARG BASE_IMAGE
ENV EMOE_IMAGE_REVISION=${REVISION} EMOE_IMAGE_BASE=${BASE_IMAGE}
LABEL org.opencontainers.image.title="emoe" \
      org.opencontainers.image.description="Emergent misalignment in Mixture-of-Experts models, reproducibly" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.emoe.lock="${LOCK}"
