"""The page at `/` and `/device`: sign in, and approve the code that a device shows (RFC 8628, 3.3).

It is static and self-contained; the script does only what any client of the contract does.
"""

import base64
import hashlib

from aiohttp import web

STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:18px/1.6 system-ui,sans-serif;max-width:32rem;margin:8vh auto;padding:0 1rem;color:#1b1f24}"
    "input{font:1.4rem ui-monospace,monospace;width:9ch;text-transform:uppercase;padding:.3rem .6rem}"
    "button{font:inherit;padding:.4rem 1.2rem}#say{min-height:1.6em}"
    "dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.3rem 1rem;margin:1.2rem 0}"
    "dt{color:#57606a}dd{margin:0;overflow-wrap:anywhere}[hidden]{display:none}"
    "@media(max-width:30rem){dl{display:block}dd{margin-bottom:.5rem}}"
    "@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}dt{color:#9198a1}}"
)
SCRIPT = """
const at = (id) => document.getElementById(id);
const say = (text) => { at("say").textContent = text; };
const cookie = (name) =>
  (document.cookie.split("; ").find((c) => c.startsWith(name + "=")) || "").slice(name.length + 1);
const post = (path, body) => fetch(path, {
  method: "POST", credentials: "same-origin", body: JSON.stringify(body),
  headers: { "Content-Type": "application/json", "X-Plexsphere-CSRF": cookie("plexsphere_csrf") },
});
const query = new URLSearchParams(location.search);
if (query.get("user_code")) sessionStorage.setItem("user_code", query.get("user_code"));
at("code").value = sessionStorage.getItem("user_code") || "";
if (query.get("auth_error_detail")) say("The sign-in failed: " + query.get("auth_error_detail"));
let me = {}, asked = null, code = "";

function forget() {
  asked = null;
  code = "";
  at("facts").replaceChildren();
  at("seen").hidden = at("yes").disabled = true;
}
function fact(name, value) {
  const rows = [document.createElement("dt"), document.createElement("dd")];
  rows[0].textContent = name;
  rows[1].textContent = value;
  at("facts").append(...rows);
}
async function show() {
  forget();
  const who = await fetch("/v1/auth/whoami", { credentials: "same-origin" });
  me = who.ok ? await who.json() : {};
  at("in").hidden = who.ok;
  at("ask").hidden = !who.ok;
}
async function signIn(wanted) {
  const answer = await post("/v1/auth/sign-in", wanted);
  const body = await answer.json();
  if (answer.ok) location.assign(body.authorization_url); else say(body.detail);
}
async function decide(verb, told) {
  const answer = await post("/v1/auth/device/" + verb, { user_code: code });
  if (!answer.ok) return say((await answer.json()).detail);
  sessionStorage.removeItem("user_code");
  forget();
  say(told);
}
at("in").addEventListener("click", () => signIn({}));
at("code").addEventListener("input", forget);
at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  forget();
  const typed = at("code").value.trim().toUpperCase();
  const answer = await post("/v1/auth/device/inspect", { user_code: typed });
  const body = await answer.json();
  // What was typed meanwhile has not been looked at.
  if (typed !== at("code").value.trim().toUpperCase()) return;
  if (!answer.ok) return say(body.detail);
  say("");
  [asked, code] = [body, typed];
  sessionStorage.setItem("user_code", typed);
  fact("You are", me.email || me.subject);
  fact("Domain", asked.domain_name || "the platform, no Domain");
  fact("Asked by", asked.client_ip || "an unknown address");
  fact("Asked at", new Date(asked.asked_at).toLocaleString());
  fact("Calls itself", asked.client_id || "nothing");
  fact("Says it runs", asked.user_agent || "unknown");
  const acr = asked.acr_values || [], age = asked.max_age;
  fact("Wants", [
    acr.length ? "strong sign-in: " + acr.join(" or ") : "any sign-in",
    age === undefined ? "" : age ? "at most " + age + " seconds old" : "made after it asked",
  ].filter(Boolean).join(", "));
  at("yes").disabled = asked.step_up_needed;
  at("stronger").hidden = !asked.step_up_needed;
  at("seen").hidden = false;
});
at("yes").addEventListener("click", () => decide("approve", "Approved. You can close this page."));
at("deny").addEventListener("click", () => decide("deny", "Denied. You can close this page."));
at("stronger").addEventListener("click", () => signIn({
  return_to: "/device",
  ...(me.domain_id && { domain_id: me.domain_id }),
  ...(asked.acr_values && { acr_values: asked.acr_values }),
  ...(asked.max_age !== undefined && { max_age: asked.max_age }),
}));
show();
"""
PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Plexsphere</title>'
    f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    "<h1>Approve a device</h1><p>Approve only when a device in front of you shows this very code, because you signed in"
    " there a moment ago. Whoever sends you a link to this page is after your access.</p>"
    '<form id="ask" hidden><p><label>Code <input id="code" name="code" maxlength="9" autocomplete="off"></label>'
    " <button>Show who asks</button></form>"
    '<section id="seen" hidden><dl id="facts"></dl>'
    '<p><button type="button" id="yes" disabled>Approve</button> <button type="button" id="deny">Deny</button>'
    ' <button type="button" id="stronger" hidden>Sign in as it wants</button></section>'
    '<p><button id="in" hidden>Sign in</button><p id="say" role="status"></p>'
    f"<script>{SCRIPT}</script></html>"
)


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; connect-src 'self'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def approval(_: web.Request) -> web.Response:
    """Serve the page."""
    return web.Response(text=PAGE, content_type="text/html", headers={"Content-Security-Policy": POLICY})
