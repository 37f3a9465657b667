// One OpenID provider of the embedded stack. A login is finished by plain HTTP: POST the interaction's own URL with
// subject, acr, amr (space-separated) and auth_age (seconds). POST /development/rotate-keys signs with a new key from
// then on, and with forget=1 no longer publishes the old ones; POST /development/disable forgets a subject. Development and tests only.
import { generateKeyPairSync, randomUUID } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:https";
import Provider from "oidc-provider";
import { createMemoryAdapter } from "oidc-provider/lib/adapters/memory_adapter.js";

const settings = JSON.parse(readFileSync(process.argv[2], "utf8"));
const DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code";

const configuration = {
  // One store for all that follow each other when keys are rotated.
  adapter: createMemoryAdapter(),
  clients: [
    {
      client_id: settings.client_id,
      client_secret: readFileSync(settings.client_secret_file, "utf8"),
      redirect_uris: settings.redirect_uris,
      post_logout_redirect_uris: settings.post_logout_redirect_uris,
      backchannel_logout_uri: settings.backchannel_logout_uri,
      backchannel_logout_session_required: true,
      response_types: ["code"],
      grant_types: ["authorization_code", "refresh_token", DEVICE_GRANT],
      require_auth_time: true,
    },
  ],
  pkce: { required: () => true },
  // It refuses to call this machine, which is where the edge of an embedded stack is; only that one call may.
  fetch: (url, options) =>
    globalThis.fetch(url, String(url) === settings.backchannel_logout_uri ? { ...options, dispatcher: undefined } : options),
  features: {
    devInteractions: { enabled: false },
    backchannelLogout: { enabled: true },
    deviceFlow: {
      enabled: true,
      userCodeInputSource: (ctx, form) => page(ctx, form, "op.deviceInputForm"),
      userCodeConfirmSource: (ctx, form) => page(ctx, form, "op.deviceConfirmForm"),
      successSource: (ctx) => page(ctx, "<p>Signed in.", ""),
    },
  },
  cookies: { keys: [readFileSync(settings.client_secret_file, "utf8")] },
  claims: { openid: ["sub", "acr", "amr", "auth_time"], email: ["email", "email_verified"], profile: ["name"] },
  // Everything that a scope gives is in the id_token, so that a relying party needs no userinfo call.
  conformIdTokenClaims: false,
  acrValues: ["urn:plexsphere:acr:pwd", "urn:plexsphere:acr:mfa", "urn:plexsphere:acr:phr"],
  ttl: { AuthorizationCode: 60, AccessToken: 300, IdToken: 300, Interaction: 600, Session: 3600, Grant: 3600 },
  interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
  rotateRefreshToken: true,
  findAccount: (_ctx, sub) =>
    disabled.has(sub)
      ? undefined
      : { accountId: sub, claims: () => ({ sub, name: sub, email: `${sub}@example.test`, email_verified: true }) },
  // Whoever signs in consents to what the client asks for.
  loadExistingGrant: async (ctx) => {
    const grant = new ctx.oidc.provider.Grant({
      clientId: ctx.oidc.client.clientId,
      accountId: ctx.oidc.session.accountId,
    });
    grant.addOIDCScope("openid email profile offline_access");
    await grant.save();
    return grant;
  },
  renderError: (ctx, out) => {
    ctx.type = "json";
    ctx.body = out;
  },
};

let provider;
let serve;
// People whom the provider no longer knows.
const disabled = new Set();

function begin() {
  provider = new Provider(settings.issuer, { ...configuration, jwks: JSON.parse(readFileSync(settings.jwks, "utf8")) });
  provider.on("backchannel.error", (_ctx, error) => console.error("back-channel logout:", error.message, error.cause));
  serve = provider.callback();
}

function page(ctx, content, form) {
  const button = form ? `<p><button form="${form}">Go on</button>` : "";
  ctx.type = "html";
  ctx.body = `<!doctype html><title>Device sign-in</title>${content}${button}`;
}

function rotateKeys(forget) {
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const fresh = { ...privateKey.export({ format: "jwk" }), kid: randomUUID(), use: "sig", alg: "RS256" };
  const old = forget ? [] : JSON.parse(readFileSync(settings.jwks, "utf8")).keys;
  // The first key that fits signs.
  writeFileSync(settings.jwks, JSON.stringify({ keys: [fresh, ...old] }), { mode: 0o600 });
  begin();
}

const FORM = `<!doctype html><title>Sign in</title><h1>Development sign-in</h1><form method="post">
<p><label>Subject <input name="subject" value="operator"></label>
<p><label>acr <input name="acr"></label> <label>amr <input name="amr"></label>
<p><label>Seconds since the login <input name="auth_age" value="0"></label>
<p><button>Sign in</button></form>`;

function readForm(request) {
  return new Promise((resolve, reject) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => resolve(new URLSearchParams(Buffer.concat(chunks).toString())));
    request.on("error", reject);
  });
}

async function interact(request, response) {
  const interaction = await provider.interactionDetails(request, response);
  if (request.method !== "POST") {
    response.setHeader("Content-Type", "text/html; charset=utf-8");
    response.end(FORM);
    return;
  }
  const form = await readForm(request);
  if (interaction.prompt.name === "consent") {
    await provider.interactionFinished(request, response, { consent: {} }, { mergeWithLastSubmission: true });
    return;
  }
  const login = {
    accountId: form.get("subject"),
    ts: Math.floor(Date.now() / 1000) - Number(form.get("auth_age") || 0),
    remember: false,
  };
  if (form.get("acr")) login.acr = form.get("acr");
  if (form.get("amr")) login.amr = form.get("amr").split(" ");
  await provider.interactionFinished(request, response, { login }, { mergeWithLastSubmission: false });
}

async function answer(request, response) {
  if (request.url.startsWith("/interaction/")) {
    await interact(request, response);
  } else if (request.url === "/development/rotate-keys" && request.method === "POST") {
    rotateKeys((await readForm(request)).get("forget") === "1");
    response.statusCode = 204;
    response.end();
  } else if (request.url === "/development/disable" && request.method === "POST") {
    disabled.add((await readForm(request)).get("subject"));
    response.statusCode = 204;
    response.end();
  } else {
    await serve(request, response);
  }
}

begin();
const files = { cert: readFileSync(settings.certificate), key: readFileSync(settings.key), minVersion: "TLSv1.3" };
createServer(files, (request, response) => {
  answer(request, response).catch((error) => {
    response.statusCode = 400;
    response.end(String(error.message));
  });
}).listen(settings.port, settings.host ?? "127.0.0.1");
