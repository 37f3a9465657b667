"""Remove one control at a time in a scratch copy, and see the attack on it succeed: its test must go red.

`make mutants` runs all; names as arguments run those. No switch for any of this is in shipped code. Writes
build/mutants.json and prints the table.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.mutant import THREATS, Mutant
from tools.mutants_access import ACCESS
from tools.mutants_audit import AUDIT
from tools.mutants_secrets import SECRETS
from tools.mutants_sessions import SESSIONS
from tools.mutants_sign_in import SIGN_IN
from tools.mutants_tokens import TOKENS

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "build" / "mutants.json"
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "node_modules", "build", ".state", "__pycache__", ".*_cache", "*.egg-info"
)

# The copy as it is must be green, or a red attack would say nothing.
UNTOUCHED = Mutant("nothing removed", "README.md", "#", "#", THREATS + "test_memory.py")

FORGERIES = THREATS + "mesh/test_forgeries.py::test_a_forgery_reaches_nobody_is_counted_and_audited"
MUTANTS = (
    Mutant(
        "F-1 signature",
        "services/gateway/gate.py",
        "                envelope.authenticate(one.envelope, trust, now_ns)\n",
        "                pass\n",
        FORGERIES,
    ),
    Mutant(
        "F-1 nonce",
        "services/gateway/gate.py",
        "            if verdict is Verdict.PUBLISHED:\n",
        "            if verdict is not None:\n",
        FORGERIES,
    ),
    Mutant(
        "F-1 age",
        "services/gateway/gate.py",
        "    if abs(now_ns - parsed.issued_ns) > envelope.WINDOW_NS:\n",
        "    if False:\n",
        FORGERIES,
        (("libs/envelope.py", "    if abs(age) > WINDOW_NS:\n", "    if False:\n"),),
    ),
    Mutant(
        "F-1 subject",
        "services/gateway/gate.py",
        "    elif (scope[1], scope[2], parsed.type) != (subject[2], subject[3], subject[4]):\n",
        "    elif False:\n",
        FORGERIES,
    ),
    Mutant(
        "F-1 digest of the nonce store",
        "services/mesh/log_store.py",
        '        return Publication.PUBLISHED if row["digest"] == one.digest else Publication.ALTERED\n'
        '    if row["digest"] != one.digest:\n        return Publication.ALTERED\n',
        "        return Publication.PUBLISHED\n",
        FORGERIES,
    ),
    Mutant(
        "F-1 a row a minute",
        "services/gateway/refusals.py",
        '                idempotency_key=uuid5(SPACE, f"{chain}/{reason}/{minute}"),\n',
        "",
        THREATS + "mesh/test_forgeries.py::test_a_flood_of_forgeries_does_not_grow_the_chain",
        (
            ("services/gateway/refusals.py", "        if key not in self._recorded:\n", "        if True:\n"),
            (
                "services/gateway/refusals.py",
                '        if (None, f"{chain}/{reason}", minute) in self._recorded:\n            return\n',
                "",
            ),
        ),
    ),
    Mutant(
        "F-1 revocation counts at once",
        "services/mesh/model.py",
        "        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)\n",
        "        return self.expires_at is None or now < self.expires_at\n",
        THREATS + "mesh/test_keys.py::test_a_revoked_key_counts_for_nothing_at_once_and_nodes_are_told_what_to_do",
    ),
    Mutant(
        "F-1 the end of a transition",
        "services/gateway/mesh.py",
        '    if key.HasField("expires_at"):\n',
        "    if False:\n",
        THREATS + "mesh/test_keys.py::test_the_retired_key_verifies_nothing_after_its_transition",
        (
            (
                "services/mesh/model.py",
                "        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)\n",
                "        return self.revoked_at is None\n",
            ),
        ),
    ),
    Mutant(
        "F-1 reserved type",
        "services/mesh/service.py",
        "        genuine = self._genuine(keys, payload) if kind == ROTATED else payload\n",
        "        genuine: str | None = payload\n",
        THREATS + "mesh/test_keys.py::test_nobody_announces_a_key_of_his_own",
    ),
    Mutant(
        "F-1 live authorization",
        "services/gateway/revocations.py",
        '            hub.end_node(UUID(identifier), "revoked")\n',
        "            pass\n",
        THREATS + "mesh/test_streams.py::test_a_removed_relation_cuts_off_and_the_reconnect_is_refused",
    ),
    Mutant(
        "F-1 a failing port is not skipped",
        "services/gateway/hub.py",
        "                    self._answered = False\n                    self._fail(error.code)\n",
        "                    pass\n",
        THREATS + "mesh/test_streams.py::test_a_port_that_is_down_is_503_and_ends_open_streams",
    ),
    Mutant(
        "F-1 who may publish",
        "deploy/nats/nats.conf",
        'publish { allow: ["$JS.API.CONSUMER.MSG.NEXT.EVENTS.*"] }',
        'publish { allow: [">"] }',
        THREATS + "mesh/test_broker.py::test_nobody_but_mesh_publishes_events",
    ),
    Mutant(
        "F-1 an account of their own for gateways",
        "deploy/nats/nats.conf",
        "      @SUPERUSER@\n",
        '      { user: "spiffe://plexsphere/gateway", permissions { '
        'publish { allow: ["$JS.API.CONSUMER.MSG.NEXT.EVENTS.*"] }, subscribe { allow: ["_INBOX.gateway.>"] } } }\n'
        "      @SUPERUSER@\n",
        THREATS + "mesh/test_broker.py::test_a_gateway_cannot_make_the_broker_answer_elsewhere",
        (
            (
                "deploy/nats/nats.conf",
                '        user: "spiffe://plexsphere/gateway"\n',
                '        user: "spiffe://plexsphere/nobody"\n',
            ),
        ),
    ),
    Mutant(
        "F-1 what was lost is mended",
        "services/mesh/keeper.py",
        "        self._doubted |= self.doubtful.is_set()\n",
        "        return\n        self._doubted |= self.doubtful.is_set()\n",
        THREATS + "mesh/test_broker.py",
    ),
    Mutant(
        "F-1 what is withheld comes from the log",
        "services/gateway/hub.py",
        "            await self._take((), owed)\n",
        "            pass\n",
        THREATS + "mesh/test_withheld.py::test_what_is_acknowledged_and_not_brought_comes_from_the_log",
    ),
    Mutant(
        "F-1 none overtakes one that is refused",
        "services/mesh/publisher.py",
        "        if waiting.before is not None and waiting.before.refused:\n",
        "        if False:\n",
        "services/mesh/tests/test_publisher.py::test_those_in_order_are_published_up_to_the_first_that_cannot_be",
    ),
    Mutant(
        "F-1 a place that cannot come next is not noted",
        "services/mesh/publisher.py",
        "        if not comes_next(places[0], highest):\n",
        "        if False:\n",
        THREATS
        + "mesh/test_broker.py::test_a_stream_at_the_end_of_all_numbers_is_cried_out_until_an_operator_deletes_it",
        (("services/mesh/keeper.py", "        if not comes_next(places[0], highest):\n", "        if False:\n"),),
    ),
    Mutant(
        "F-1 what a node is denied is recorded",
        "services/gateway/denials.py",
        "        if action is None:\n",
        "        if True:\n",
        THREATS + "mesh/test_streams.py::test_another_nodes_path_is_refused_and_recorded_once",
    ),
    Mutant(
        "guard: caller list",
        "libs/rpc/guard.py",
        "        if not peer or peer not in self._callers.get(service, ()):\n",
        "        if not peer:\n",
        THREATS + "test_guard.py::test_a_valid_certificate_of_a_process_that_is_not_listed_is_refused",
    ),
    Mutant(
        "guard: principal required",
        "libs/rpc/guard.py",
        "        needed = self._principals.get(service, True)\n",
        "        needed = False\n",
        THREATS + "test_guard.py::test_a_wrong_assertion_is_refused_for_every_rpc_that_requires_one",
    ),
    Mutant(
        "assertion: audience",
        "libs/principal.py",
        ' or claims.get("aud") != self._audience:',
        ":",
        THREATS + "test_guard.py::test_a_wrong_assertion_is_refused_for_every_rpc_that_requires_one",
    ),
    Mutant(
        "assertion: presenter",
        "libs/principal.py",
        '        if claims.get("azp") != peer:\n',
        "        if False:\n",
        THREATS + "test_guard.py::test_a_wrong_assertion_is_refused_for_every_rpc_that_requires_one",
    ),
    Mutant(
        "assertion: SAN of the signer",
        "libs/principal.py",
        "        if names.get_values_for_type(x509.UniformResourceIdentifier) != [SIGNER_URI]:\n",
        "        if False:\n",
        THREATS + "test_guard.py::test_a_wrong_assertion_is_refused_for_every_rpc_that_requires_one",
    ),
    Mutant(
        "assertion: CA of the signer",
        "libs/principal.py",
        "            leaf.verify_directly_issued_by(authority)\n",
        "            _ = authority\n",
        THREATS + "test_guard.py::test_a_wrong_assertion_is_refused_for_every_rpc_that_requires_one",
    ),
    Mutant(
        "edge: CSRF token",
        "services/gateway/csrf.py",
        "        raise CsrfTokenMismatch\n",
        "        pass\n",
        THREATS + "test_input.py::test_a_cookie_needs_the_csrf_header_and_the_right_origin",
    ),
    Mutant(
        "edge: Origin",
        "services/gateway/csrf.py",
        "        raise CsrfOriginMismatch\n",
        "        pass\n",
        THREATS + "test_input.py::test_a_cookie_needs_the_csrf_header_and_the_right_origin",
    ),
    *SIGN_IN,
    *ACCESS,
    *SECRETS,
    *SESSIONS,
    *TOKENS,
    *AUDIT,
    Mutant(
        "A-1 columns held against the bytes",
        "services/audit/piece.py",
        "        if not agree(piece.row(index)):\n",
        "        if False:\n",
        THREATS + "audit/test_columns.py::test_a_rewritten_column_is_found_at_its_sequence",
    ),
    Mutant(
        "A-1 hash of the entry",
        "services/audit/piece.py",
        "        if observed != own:\n",
        "        if False:\n",
        THREATS + "audit/test_columns.py::test_a_rewritten_column_is_found_at_its_sequence",
    ),
    Mutant(
        "A-5 the table refuses change",
        "services/audit/migrations/0001_create_chain.py",
        "CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON audit.entries\n"
        "    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();\n",
        "",
        THREATS + "test_audit.py::test_even_the_owner_is_refused_by_the_table",
    ),
    Mutant(
        "A-5 refusing downgrade",
        "services/audit/migrations/0001_create_chain.py",
        '    refuse("going below this revision would delete audit entries")\n',
        '    run("DROP TABLE audit.entries")\n',
        THREATS + "test_database.py::test_a_downgrade_that_would_lose_audit_data_or_keys_is_refused",
    ),
    Mutant(
        "S-1 column guard",
        "services/mesh/__main__.py",
        '        await guard_columns(pool, "mesh", COLUMNS)\n',
        "",
        THREATS + "test_database.py::test_a_column_that_nobody_declared_stops_the_service",
    ),
    Mutant(
        "S-1 form of a wrapped key",
        "services/identity/migrations/0010_check_forms.py",
        "CHECK (wrapped ~ '^vault:v[0-9]+:[A-Za-z0-9+/]{80}$')",
        "CHECK (wrapped <> '')",
        THREATS + "test_database.py::test_plaintext_is_refused_by_the_database",
        # The guard would not let the stack start.
        (("libs/columns.py", "    if complete and kind and kind in FORMS and not", "    if False and not"),),
    ),
    Mutant(
        "S-1 names that speak of a secret",
        "libs/columns.py",
        "    if _speaks(column) and kind not in GUARDED and",
        "    if False and",
        "libs/tests/test_migrations.py::test_the_job_commits_no_bad_migration",
    ),
    Mutant(
        "S-1 the migration job is guarded",
        "libs/migrations.py",
        "            await connection.run_sync(_guard, services, target)\n",
        "",
        "libs/tests/test_migrations.py::test_the_job_commits_no_bad_migration",
    ),
    Mutant(
        "A-2 no core files",
        "libs/custody.py",
        "    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n",
        "    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))\n",
        THREATS + "test_memory.py",
    ),
)


def try_mutant(mutant: Mutant) -> dict[str, object]:
    """Run the attack against a copy without the control; the mutant is killed when its test goes red."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plex-mutant-") as folder:
        copy = Path(folder) / "repo"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        for shared in (".venv", "node_modules"):
            (copy / shared).symlink_to(ROOT / shared)
        for file, control, without in mutant.edits:
            text = (copy / file).read_text()
            if control not in text:
                raise SystemExit(f"{mutant.name}: its control is not in {file} any more; mend tools/mutants.py")
            (copy / file).write_text(text.replace(control, without))
        # The copy's own modules come first; the stubs under proto/ are the original's. What a red run keeps goes, too.
        environment = {**os.environ, "PYTHONPATH": str(copy), "TMPDIR": folder}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.attack]
        ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    # A test that failed: a stack that did not start is an ERROR, which ends the run before any test.
    red = ran.returncode == 1 and "\nFAILED " in ran.stdout
    return {
        "control": mutant.name,
        "attack": mutant.attack,
        "killed": red,
        "seconds": round(time.monotonic() - started, 1),
        "output": "" if red else ran.stdout[-2000:] + ran.stderr[-2000:],
    }


def main() -> None:
    """Try the mutants and end with 1 when one survives."""
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or any(word in mutant.name for word in sys.argv[1:])]
    untouched = str(try_mutant(UNTOUCHED)["output"])
    if " passed" not in untouched or "FAILED" in untouched or "ERROR" in untouched:
        raise SystemExit(f"an untouched copy is not green:\n{untouched}")
    rows = []
    for mutant in chosen:
        row = try_mutant(mutant)
        rows.append(row)
        print(
            f"{'killed  ' if row['killed'] else 'SURVIVED'} {row['seconds']:>5} s  {mutant.name}  <- {mutant.attack}",
            flush=True,
        )
        if not row["killed"]:
            print(row["output"])
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(rows, indent=2) + "\n")
    survived = sum(not row["killed"] for row in rows)
    print(f"{len(rows) - survived} of {len(rows)} killed")
    raise SystemExit(1 if survived else 0)


if __name__ == "__main__":
    main()
