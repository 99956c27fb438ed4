# Triton with what the Hugging Face engine imports. Built from the repository root.
#
# The tag: 26.07 is the oldest release that no published security bulletin of NVIDIA's names as affected (as of
# September 2026). Before 25.07 there are chains to unauthenticated remote code execution through model control and
# shared memory; before 26.03 an authentication bypass (CVE-2026-24207), before 26.04 a missing authorization
# (CVE-2026-47625), before 26.06 a path traversal that is rated critical (CVE-2026-47627).
ARG TRITON_TAG=26.07-py3

FROM python:3.11-slim AS requirements
WORKDIR /src
COPY pyproject.toml docker/requirements.py ./
RUN { python requirements.py backend; python requirements.py core | grep ^grpcio-health-checking; } > requirements.txt

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG} AS build
# pip's own settings, for builds behind a firewall; they do not reach the final image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
# Narrows pyproject.toml's range, e.g. to a CPU build: torch==2.13.0+cpu
ARG TORCH=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_FIND_LINKS=/wheels
COPY docker/wheels/ /wheels/
COPY --from=requirements /src/requirements.txt /src/
# A folder of their own leaves the image's packages alone.
RUN python3 -m pip install --target /opt/uellm/packages -r /src/requirements.txt ${TORCH:+"$TORCH"}

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}
# NVIDIA's image has a user 1000 for the server; others may not.
RUN getent passwd 1000 || useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin triton-server
# A new volume takes over this folder with its owner; the deployer's image has the same.
RUN install -d -o 1000 -g 1000 /var/lib/uellm/repository /var/lib/uellm/repository/models
COPY --from=build /opt/uellm /opt/uellm
COPY docker/health.py /opt/uellm/
# First on the path, by a file that every interpreter reads: the engine's is embedded and ignores PYTHONPATH.
RUN echo 'import sys; sys.path.insert(0, "/opt/uellm/packages")' \
    > "$(python3 -c 'import site; print(site.getsitepackages()[0])')/uellm.pth"
# Without UTF-8 the engine's interpreter starts in ASCII. HOME: caches of the libraries; the file system is read-only.
ENV PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8 HOME=/tmp
USER 1000:1000
RUN python3 -c "import accelerate, grpc_health.v1, numpy, safetensors, sys, torch, transformers, tritonclient.grpc; sys.exit(numpy.__version__ >= '2')"
