# The coordinator: it averages and signs, so the CPU build of torch is enough.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PATH=/opt/voxfed/bin:$PATH
ENV PYTHONUNBUFFERED=1 HOME=/tmp USER=voxfed MPLCONFIGDIR=/tmp

RUN python -m venv /opt/voxfed
COPY requirements.txt /build/
RUN pip install --no-cache-dir --extra-index-url ${TORCH_INDEX} --requirement /build/requirements.txt
COPY . /build
RUN pip install --no-cache-dir --no-deps --no-build-isolation /build

ENV VOXFED_SERVER=/coordinator VOXFED_HEALTH=127.0.0.1:9094
WORKDIR /coordinator
USER 10001:10001
HEALTHCHECK --start-period=60s --interval=30s --timeout=10s CMD ["python", "-m", "voxfed.study.health"]
ENTRYPOINT ["voxfed"]
CMD ["server", "start", "--health-port", "9094"]
