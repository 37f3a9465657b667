"""Privileged sessions as an outside client sees them: who asks, how they step up, and how a token is verified."""

import base64
import json
import re
import uuid
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.e2e.outside import JSON, Answer, Edge, Login, Outside
from tests.e2e.stories.main_job import Story

PHR, MFA = "urn:plexsphere:acr:phr", "urn:plexsphere:acr:mfa"
SHELL = {"ssh": {"user": "root", "allowed_commands": ["uptime"]}}


def decoded(part: str) -> bytes:
    """Read unpadded base64url."""
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


@dataclass
class Person:
    """Somebody of a Domain, and what they hold at the moment."""

    outside: Outside
    domain_id: str
    login: Login
    browser: Edge
    edge: Edge
    subject: str

    @classmethod
    async def of(cls, outside: Outside, domain_id: str, login: Login) -> "Person":
        """Sign in at the Domain's provider, and get an access token by the device flow."""
        browser = await outside.sign_in(login, domain_id)
        token = await outside.access_token(browser, domain_id=domain_id)
        subject = (await browser.call("GET", "/v1/auth/whoami")).json["subject"]
        return cls(outside, domain_id, login, browser, outside.edge().as_bearer(token), subject)

    async def step_up(self, refused: Answer, login: Login) -> "Person":
        """Follow the challenge of a refusal, and nothing else, at the provider."""
        challenge = refused.headers["WWW-Authenticate"]
        wanted: dict[str, Any] = {}
        if acr := re.search(r'acr_values="([^"]*)"', challenge):
            wanted["acr_values"] = acr[1].split()
        if age := re.search(r'max_age="(\d+)"', challenge):
            wanted["max_age"] = int(age[1])
        login = replace(login, subject=self.login.subject)
        browser = await self.outside.sign_in(login, self.domain_id, **wanted)
        token = await self.outside.access_token(browser, domain_id=self.domain_id, **wanted)
        return replace(self, login=login, browser=browser, edge=self.outside.edge().as_bearer(token))


async def resource_of(story: Story, handle: str) -> str:
    """Return the id of an adopted resource."""
    listed = await story.operator.call("GET", f"/v1/projects/{story.project_id}/resources?limit=200")
    return str(next(row["id"] for row in listed.json["items"] if row["external_ref"] == handle))


async def put_policy(story: Story, **policy: Any) -> Answer:
    """Replace the Domain's access policy."""
    return await story.operator.call("PUT", f"/v1/domains/{story.domain_id}/access-policy", policy)


async def give(story: Story, person: Person, relation: str = "operator", **caveat: Any) -> str:
    """Give somebody a role in the project; returns its id."""
    body = {"subject": f"user:{person.subject}", "relation": relation, "resource": f"project:{story.project_id}"}
    body |= caveat
    given = await story.operator.call("POST", f"/v1/authz/relation-tuples?project_id={story.project_id}", body)
    assert given.status == 201, given.body
    return str(given.json["id"])


async def issue(edge: Edge, story: Story, resource_id: str, **more: Any) -> Answer:
    """Ask for a shell on a resource."""
    body = {"resource_id": resource_id, "kind": "ssh", "target": SHELL, "idempotency_key": str(uuid.uuid4())} | more
    return await edge.call("POST", f"/v1/projects/{story.project_id}/sessions", body)


async def claims(story: Story, token: str) -> JSON:
    """Verify a session token against the published keys and return its claims."""
    published = await story.outside.edge().call("GET", f"/v1/domains/{story.domain_id}/jwks.json")
    assert published.status == 200, published.body
    header, body, signature = token.split(".")
    said = json.loads(decoded(header))
    assert (said["alg"], said["typ"]) == ("EdDSA", "plexsphere-session+jwt"), said
    (key,) = [key for key in published.json["keys"] if key["kid"] == said["kid"]]
    Ed25519PublicKey.from_public_bytes(decoded(key["x"])).verify(decoded(signature), f"{header}.{body}".encode())
    found: JSON = json.loads(decoded(body))
    return found
