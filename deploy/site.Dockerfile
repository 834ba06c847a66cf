# One image for a hospital's worker and courier. PyPI's torch brings CUDA along; the CPU one comes by
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -f deploy/site.Dockerfile .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG TORCH_INDEX=https://pypi.org/simple

ENV PATH=/opt/voxfed/bin:$PATH
ENV PYTHONUNBUFFERED=1 HOME=/tmp USER=voxfed MPLCONFIGDIR=/tmp
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN python -m venv /opt/voxfed
COPY requirements.txt /build/
RUN pip install --no-cache-dir --extra-index-url ${TORCH_INDEX} --requirement /build/requirements.txt
COPY . /build
RUN pip install --no-cache-dir --no-deps --no-build-isolation /build

ENV VOXFED_SITE=/site VOXFED_HEALTH=unix:/site/run/worker.sock
WORKDIR /site
USER 10001:10001
HEALTHCHECK --start-period=60s --interval=30s --timeout=10s CMD ["python", "-m", "voxfed.study.health"]
ENTRYPOINT ["voxfed"]
CMD ["site", "start", "--role", "worker"]
