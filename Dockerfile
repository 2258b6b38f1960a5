ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
# The agent's packages go into the environment that is shipped; the build backend does not.
RUN python -m venv /opt/feedback-agent \
    && /opt/feedback-agent/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheels . \
    && /opt/feedback-agent/bin/pip install --no-deps --no-index /wheels/*.whl

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/feedback-agent /opt/feedback-agent
# The state directory is the one place the agent writes to; /tmp is SQLite's.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/feedback-agent
ENV PATH=/opt/feedback-agent/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 9108
STOPSIGNAL SIGTERM
ENTRYPOINT ["feedback-agent"]
CMD ["run"]
