# One file, two images: `api` (no torch) and `worker` (with the quantizer).
#   docker build --target api    -t nupes-api .
#   docker build --target worker -t nupes-worker .
# EXTRAS adds others of pyproject.toml, such as ",otel" for traces. PIP_EXTRA_INDEX_URL may name an index with CPU builds of torch, as PyTorch's
# page on installing does; without it the worker gets the CUDA build.
FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/nupes/bin:$PATH

FROM base AS build
ENV NUPES_REQUIRE_DASHBOARD=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The image's own pip fills it (`pip --python`): what runs needs none.
RUN python -m venv --without-pip /opt/nupes
COPY pyproject.toml README.md ./
COPY nupes_client nupes_client
COPY app app
COPY migrations migrations
COPY worker worker
COPY nupes_core nupes_core

# The build backend fetches the dashboard's third-party code from npm, with a Node of its own.
FROM build AS build-api
ARG PIP_EXTRA_INDEX_URL=""
ARG EXTRAS=""
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip pip --python /opt/nupes/bin/python install ".[server${EXTRAS}]"

FROM build AS build-worker
ARG PIP_EXTRA_INDEX_URL=""
ARG EXTRAS=""
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip pip --python /opt/nupes/bin/python install ".[core,server${EXTRAS}]"

FROM base AS runtime
RUN groupadd --gid 10001 nupes \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data nupes \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
ENV NUPES_DATA_DIR=/data NUMBA_CACHE_DIR=/data/numba HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /data
USER 10001
VOLUME /data

FROM runtime AS api
COPY --from=build-api /opt/nupes /opt/nupes
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
# Whoever is still sending or receiving when it is told to stop has 8 of the 10 seconds until it is killed.
CMD ["uvicorn", "app.main:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", \
     "--timeout-graceful-shutdown", "8", "--no-access-log", "--no-server-header"]

FROM runtime AS worker
COPY --from=build-worker /opt/nupes /opt/nupes
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["python", "-m", "worker.healthcheck"]
CMD ["python", "-m", "worker"]
