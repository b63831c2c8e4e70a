# The trainer and all that it needs, for machines without GPUs (--target=cpu) and
# with NVIDIA's (--target=gpu, the default). BUILD.md has the commands.

# A tag moves: for a release, give the digest that it has, sha256:..., as well.
# The locks are for its Python.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG BASE_DIGEST=

FROM ${BASE_IMAGE}${BASE_DIGEST:+@$BASE_DIGEST} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY locks/build.txt locks/
RUN python3 -m venv /opt/venv \
  && /opt/venv/bin/pip install --require-hashes --no-deps \
    --only-binary=:all: --no-compile --requirement=locks/build.txt

# Wheels only, since there is no compiler here; but of promise there is only a
# source archive, of pure Python, which the locked setuptools builds.
# Bytecode that is never compared with its source: the root is read-only later,
# and whatever sets the files' times anew must not make the bytecode worthless.
FROM builder AS cpu-packages
COPY locks/cpu.txt locks/
RUN /opt/venv/bin/pip install --require-hashes --no-deps \
    --only-binary=:all: --no-binary=promise --no-build-isolation \
    --no-compile --requirement=locks/cpu.txt \
  && /opt/venv/bin/pip check \
  && /opt/venv/bin/pip uninstall --yes pip \
  && /opt/venv/bin/python -m compileall -q -j 0 \
    --invalidation-mode=unchecked-hash /opt/venv/lib

# Our own code, in a layer of its own, which is all that a change of it rebuilds.
FROM builder AS package
COPY LICENSE README.md pyproject.toml setup.py ./
COPY launch launch
COPY trainer trainer
RUN /opt/venv/bin/pip install --no-index --no-deps --no-build-isolation \
    --no-compile --root=/package . \
  && /opt/venv/bin/python -m compileall -q -s /package -p / \
    --invalidation-mode=unchecked-hash /package

FROM ${BASE_IMAGE}${BASE_DIGEST:+@$BASE_DIGEST} AS runtime
# All that the trainer writes outside of --workdir goes to /scratch, which is a
# volume, so that a read-only root needs nothing more. Whoever runs it may write
# there, as in /tmp: some clusters choose the user themselves.
RUN mkdir -m 1777 /scratch
ENV HOME=/scratch \
    TMPDIR=/scratch \
    XDG_CACHE_HOME=/scratch/.cache \
    PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
WORKDIR /scratch
VOLUME ["/scratch"]
USER 10001:10001
# The trainer is process 1 and takes SIGTERM itself, from its first moment on.
ENTRYPOINT ["/opt/venv/bin/python", "-m", "trainer.main"]
HEALTHCHECK --interval=30s --timeout=20s --start-period=30s --retries=3 \
  CMD ["/opt/venv/bin/python", "-m", "trainer.health"]

FROM runtime AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
COPY --from=package /package/ /
ARG BASE_DIGEST
ARG BASE_IMAGE
ARG REVISION
ARG VERSION
ENV GAN_TRAINER_REVISION=${REVISION}
LABEL org.opencontainers.image.title="gan-trainer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"

FROM builder AS gpu-packages
COPY locks/gpu.txt locks/
RUN /opt/venv/bin/pip install --require-hashes --no-deps \
    --only-binary=:all: --no-binary=promise --no-build-isolation \
    --no-compile --requirement=locks/gpu.txt \
  && /opt/venv/bin/pip check \
  && /opt/venv/bin/pip uninstall --yes pip \
  && /opt/venv/bin/python -m compileall -q -j 0 \
    --invalidation-mode=unchecked-hash /opt/venv/lib

FROM runtime AS gpu
# For NVIDIA's container runtime; the path is where Google's clusters put the
# driver's libraries.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all
COPY --from=gpu-packages /opt/venv /opt/venv
COPY --from=package /package/ /
ARG BASE_DIGEST
ARG BASE_IMAGE
ARG REVISION
ARG VERSION
ENV GAN_TRAINER_REVISION=${REVISION}
LABEL org.opencontainers.image.title="gan-trainer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"
