# The orchestrator.
#
# The base is named by its exact tag: build with --build-arg BASE=python@sha256:... once you have read its digest with
# `docker buildx imagetools inspect python:3.11.14-slim-bookworm`. Everything else is pinned by constraints.txt.
ARG BASE=python:3.11.14-slim-bookworm

# The same in each of the three files, so that a build has it once; a test compares them.
FROM ${BASE} AS build
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY messages messages
COPY orchestrator orchestrator
COPY silo_agent silo_agent
COPY silobus silobus
COPY servicebus_emulator servicebus_emulator
COPY examples examples
RUN python -m venv /opt/silobus \
 && /opt/silobus/bin/python -m pip install --no-cache-dir -c constraints.txt ".${EXTRAS:+[$EXTRAS]}"

FROM ${BASE}
RUN groupadd --gid 10001 silobus \
 && useradd --uid 10001 --gid 10001 --create-home --home-dir /home/silobus --shell /usr/sbin/nologin silobus \
 && install -d -o 10001 -g 10001 /federation /home/silobus/home
COPY --from=build /opt/silobus /opt/silobus
ENV PATH=/opt/silobus/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /home/silobus
USER 10001:10001
STOPSIGNAL SIGTERM
# Health is asked for by who runs it, since only the settings say whether and where it is told (`health`).
ENTRYPOINT ["/opt/silobus/bin/python", "-m", "orchestrator"]
CMD ["--config", "/etc/silobus/orchestrator.yaml"]
