"""The page at `/` and `/device`: sign in, and approve the code that a device shows (RFC 8628, 3.3).

It is static and self-contained; the script does only what any client of the contract does.
"""

import base64
import hashlib

from aiohttp import web

STYLE = (
    "body{font:18px/1.6 system-ui,sans-serif;max-width:32rem;margin:10vh auto;padding:0 1rem;color:#1b1f24}"
    "input{font:1.4rem ui-monospace,monospace;width:9ch;text-transform:uppercase;padding:.3rem .6rem}"
    "button{font:inherit;padding:.4rem 1.2rem}#say{min-height:1.6em}"
    "@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}}"
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

async function show() {
  const who = await fetch("/v1/auth/whoami", { credentials: "same-origin" });
  at("in").hidden = who.ok;
  at("approve").hidden = !who.ok;
}
at("in").addEventListener("click", async () => {
  const answer = await post("/v1/auth/sign-in", {});
  const body = await answer.json();
  if (answer.ok) location.assign(body.authorization_url); else say(body.detail);
});
at("approve").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await post("/v1/auth/device/approve", { user_code: at("code").value.trim().toUpperCase() });
  if (answer.ok) { sessionStorage.removeItem("user_code"); say("Approved. You can close this page."); }
  else say((await answer.json()).detail);
});
at("deny").addEventListener("click", async () => {
  const answer = await post("/v1/auth/device/deny", { user_code: at("code").value.trim().toUpperCase() });
  if (answer.ok) { sessionStorage.removeItem("user_code"); say("Denied. You can close this page."); }
  else say((await answer.json()).detail);
});
show();
"""
PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Plexsphere</title>'
    f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    "<h1>Approve a device</h1><p>Approve only when a device in front of you shows this very code, because you signed in"
    " there a moment ago. Whoever sends you a link to this page is after your access.</p>"
    '<form id="approve" hidden><p><label>Code <input id="code" name="code" maxlength="9" autocomplete="off"></label>'
    '<p><button>Approve</button> <button type="button" id="deny">Deny</button></form>'
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
