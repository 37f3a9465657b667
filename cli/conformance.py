"""`plexctl conformance`: our own code over a file of vectors, so that authors of agents can use it too."""

import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cli.edge import EXIT_REFUSED, EXIT_USAGE, fail
from libs import chain, envelope, nsk, seal
from libs.custody import Secret
from libs.errors import NodeUnauthorized

app = typer.Typer(no_args_is_help=True, help="Run our code over files of vectors; 1 when a case fails.")

File = Annotated[Path, typer.Argument(help="File of vectors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print verdict, canonical bytes and reason of every case.")]
Case = dict[str, Any]

LARGE = re.compile(r"SHAKE256\('([^']+)'\) first (\d+) bytes")
# "max-1MiB plaintext plus one zero byte" names the case before it.
LARGEST_PLAIN = ("plexsphere-1MiB", 1024 * 1024)


@dataclass(frozen=True)
class Verdict:
    """What our code says of a case; `details` is compared with what the case expects, where it expects something."""

    valid: bool
    reason: str = ""
    canonical_hex: str | None = None
    details: dict[str, Any] | None = None


def _envelope(case: Case) -> Verdict:
    trust = case["trust"]
    grace = trust.get("grace_until")
    keys = envelope.Trust(
        key_id=trust["cur_kid"],
        key=base64.b64decode(trust["cur_key_b64"]),
        previous_key_id=trust.get("prev_kid") or "",
        previous_key=base64.b64decode(trust.get("prev_key_b64") or ""),
        transition_expires_ns=envelope.instant(grace)[0] if grace else 0,
    )
    try:
        verified = envelope.verify(bytes.fromhex(case["envelope_hex"]), keys, envelope.instant(case["now"])[0])
    except envelope.EnvelopeRefused as refused:
        signed = refused.canonical
        return Verdict(False, refused.reason, signed.hex() if signed is not None else None)
    signed_hex = verified.canonical().hex()
    # Binding only where the verdict is valid.
    return Verdict(True, "", signed_hex, {"canonical_hex": signed_hex})


def _secret_body(case: Case) -> Verdict:
    try:
        plain = seal.unseal(Secret(base64.b64decode(case["nsk_b64"])), _body(case))
    except seal.SealError as error:
        return Verdict(False, str(error))
    return Verdict(True, "", None, {"plaintext_hex": plain.hex()})


def _body(case: Case) -> bytes:
    """Return the body; those of a mebibyte are not in the file but rebuilt from a rule, and held to their digest."""
    if case.get("body_hex") is not None:
        return bytes.fromhex(case["body_hex"])
    rule = LARGE.search(case["plaintext_rule"])
    seed, length = (rule[1], int(rule[2])) if rule else LARGEST_PLAIN
    plain = hashlib.shake_256(seed.encode()).digest(length)
    if not rule:
        plain += bytes(1)
    nonce = bytes.fromhex(case["nonce_hex"])
    body = nonce + AESGCM(base64.b64decode(case["nsk_b64"])).encrypt(nonce, plain, None)
    if hashlib.sha256(body).hexdigest() != case["body_sha256"]:
        raise ValueError("the rebuilt body has another digest")
    return body


def _nsk(case: Case) -> Verdict:
    try:
        bearer = nsk.parse_header(case["authorization"])
    except NodeUnauthorized as error:
        return Verdict(False, str(error))
    parts = {"node_id": str(bearer.node_id), "nsk_hex": bearer.key.reveal().hex(), "env": bearer.environment}
    return Verdict(True, "", None, parts)


def _chain(case: Case) -> Verdict:
    if "rows" not in case:
        content = base64.b64decode(case["canonical_b64"])
        right = chain.entry_hash(bytes.fromhex(case["prev_hash"]), hashlib.sha256(content).digest()).hex()
        return Verdict(right != case.get("wrong_entry_hash"), "", content.hex(), {"right_entry_hash": right})
    first, last = case["segment_from"], case["segment_to"]
    links = [
        chain.Link(
            row["seq"], row["prev_hash"], row["entry_hash"],
            hashlib.sha256(base64.b64decode(row["canonical_b64"])).digest(),
        )
        for row in case["rows"]
    ]  # fmt: skip
    segment = [link for link in links if first <= link.seq <= last]
    divergence = chain.verify(segment, first, last, _before(segment, first))
    if divergence is None:
        return Verdict(True, "", None, {"ok": True})
    return Verdict(False, divergence.kind, None, {"ok": False, **_divergence(divergence)})


def _before(segment: list[chain.Link], first: int) -> bytes:
    """Return the hash before a segment: the genesis, or what a later segment's first row says, which is trusted."""
    if first == 1 or not segment:
        return chain.GENESIS
    try:
        return bytes.fromhex(segment[0].prev_hash)
    except ValueError:
        # Not a hash at all: whatever is compared with it, the link diverges.
        return chain.GENESIS


def _divergence(found: chain.Divergence) -> dict[str, Any]:
    return {
        "divergent_seq": found.seq,
        "kind": found.kind,
        "expected_hash": found.expected_hash,
        "observed_hash": found.observed_hash,
    }


def _expected(case: Case) -> tuple[bool | None, dict[str, Any]]:
    """Return the verdict and the details that a case expects, where it expects any."""
    if "expect" in case:
        return case["expect"]["ok"], case["expect"]
    if "wrong_entry_hash" in case:
        return True, {"right_entry_hash": case.get("right_entry_hash")}
    return case.get("valid"), case


def _differs(case: Case, verdict: Verdict) -> str:
    """Return how our verdict differs from what the case expects, or nothing."""
    valid, details = _expected(case)
    if valid is None:
        return ""
    if verdict.valid is not valid:
        return f"we say {_word(verdict)}, expected {'valid' if valid else 'invalid'}"
    for name, value in (verdict.details or {}).items():
        if details.get(name) is not None and details[name] != value and (valid or name != "canonical_hex"):
            return f"{name} differs"
    return ""


def _word(verdict: Verdict) -> str:
    return "valid" if verdict.valid else f"invalid ({verdict.reason})"


def _run(file: Path, kind: str, judge: Callable[[Case], Verdict], *, as_json: bool) -> None:
    cases = _load(file, kind)
    failing = advisory = 0
    rows = []
    for case in cases:
        try:
            verdict = judge(case)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            fail(f"{file}: case {case.get('name', '?')} is not of this format: {error!r}", EXIT_USAGE)
        difference = _differs(case, verdict)
        rows.append(
            {
                "name": case.get("name"),
                "valid": verdict.valid,
                "canonical_hex": verdict.canonical_hex,
                "reason": verdict.reason or None,
                **(verdict.details or {}),
            }
        )
        if difference:
            advisory += bool(case.get("advisory"))
            failing += not case.get("advisory")
            mark = "advisory" if case.get("advisory") else "FAIL"
            print(f"{mark} {case.get('name')}: {difference}", file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps({"format": kind, "cases": rows}, indent=1))
    print(f"{len(cases)} cases, {failing} failing, {advisory} advisory", file=sys.stderr if as_json else sys.stdout)
    if failing:
        raise typer.Exit(EXIT_REFUSED)


def _load(file: Path, kind: str) -> list[Case]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        fail(f"{file}: {error.strerror}", EXIT_USAGE)
    except (ValueError, RecursionError):
        fail(f"{file} is not JSON", EXIT_USAGE)
    found: list[Any] = []
    if isinstance(content, dict):
        lists = [content.get(name) for name in ("cases", "chains", "single_row_wrong_formulas")]
        found = [case for cases in lists if isinstance(cases, list) for case in cases]
    if not found or not all(isinstance(case, dict) for case in found):
        fail(f"{file} holds no cases of {kind}", EXIT_USAGE)
    return found


@app.command("envelope")
def run_envelope(file: File, as_json: AsJson = False) -> None:
    """Verify signed envelopes."""
    _run(file, "envelope", _envelope, as_json=as_json)


@app.command("secret-body")
def run_secret_body(file: File, as_json: AsJson = False) -> None:
    """Open bodies of secret reads."""
    _run(file, "secret-body", _secret_body, as_json=as_json)


@app.command("nsk")
def run_nsk(file: File, as_json: AsJson = False) -> None:
    """Parse node bearers."""
    _run(file, "nsk", _nsk, as_json=as_json)


@app.command("audit-chain")
def run_audit_chain(file: File, as_json: AsJson = False) -> None:
    """Recompute audit chains."""
    _run(file, "audit-chain", _chain, as_json=as_json)


if __name__ == "__main__":
    app()
