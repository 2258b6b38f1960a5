# docker build .    or scripts/image, which says how large it got
ARG PYTHON_IMAGE=python:3.12-slim
# checkov:skip=CKV_DOCKER_7:the argument has a version

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY requirements-image.lock requirements-build.lock ./
# The agent's packages go into the environment that is shipped; pip and the build backend do not.
RUN python -m venv --without-pip /opt/feedback-agent \
    && python -m venv /opt/build \
    && /opt/build/bin/pip --python /opt/feedback-agent/bin/python install \
       --no-cache-dir --require-hashes --only-binary :all: -r requirements-image.lock \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
# pip is locked as sqlite-utils asks for it, for a command of its own: nothing here may install.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheels . \
    && /opt/build/bin/pip --python /opt/feedback-agent/bin/python install \
       --no-deps --no-index /wheels/*.whl \
    && /opt/build/bin/pip --python /opt/feedback-agent/bin/python uninstall --yes pip

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="feedback-agent" \
      org.opencontainers.image.description="Ships JSONL feedback files from a node to Kafka, at least once" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/feedback-agent /opt/feedback-agent
# The state directory is the one place the agent writes to; /tmp is SQLite's. What is compiled needs
# libstdc++, which a base may lack: better known now than on each node.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/feedback-agent \
    && /opt/feedback-agent/bin/python -B -c "import cramjam, deflate, grpc, jsonschema_rs, re2"
# The allocator: blocks of the size of a read come from the heap and stay there, and are not asked of
# the kernel anew for each. glibc reads it at the start of a process, so it cannot be set any later.
ENV PATH=/opt/feedback-agent/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_MMAP_THRESHOLD_=4000000 \
    MALLOC_TRIM_THRESHOLD_=64000000
USER 10001:10001
EXPOSE 9108
STOPSIGNAL SIGTERM
# For engines that look at it; Kubernetes has its probes.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('FEEDBACK_AGENT_HTTP__PORT', '9108') + '/healthz', timeout=4)"]
# No shell between: the agent is process 1 and gets SIGTERM itself.
ENTRYPOINT ["feedback-agent"]
CMD ["run"]
