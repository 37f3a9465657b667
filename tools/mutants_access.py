"""Mutants of privileged sessions: each gate, and what keeps a session from outliving its reason."""

from tools.mutant import THREATS, Mutant

SERVICE, STEP_UP, KEYS = "services/access/service.py", "services/access/step_up.py", "services/access/keys.py"
POLICY, STORE, STANDING = "libs/access_policy.py", "services/access/store.py", "services/access/standing.py"
SCHEMA, SIGN_INS = "services/access/migrations/0002_create_sessions.py", "services/identity/sign_in_store.py"
TESTS = "services/access/tests/"
FLOOD = THREATS + "identity/test_floods.py::test_strangers_fill_no_chain_by_sessions_keys_events_and_secrets"
COUNTED, BARE = "Counted(AuditClient(audit_peer, clock), clock)", "AuditClient(audit_peer, clock)"
LOGIN = TESTS + "test_step_up.py::test_a_login"
REFUSED = TESTS + "test_service.py::test_a_login_that_is_not_fresh_and_strong_is_refused_with_what_helps"
FIFTY = TESTS + "test_store.py::test_fifty_requests_at_once_on_two_replicas_never_exceed_a_limit"
ENDED = "services/identity/tests/test_access_policy_store.py::"

ACCESS = (
    Mutant(
        "F-4 relation",
        SERVICE,
        "            await self.audit.record(at_home(row, caller.domain_id))\n            decision.require()\n",
        "            pass\n",
        TESTS + "test_service.py::test_without_the_relation_nothing_else_is_looked_at",
    ),
    Mutant("F-4 refusals of sessions end at a bound", "services/access/__main__.py", COUNTED, BARE, FLOOD),
    Mutant("F-1 refusals of keys and events end at a bound", "services/mesh/__main__.py", COUNTED, BARE, FLOOD),
    Mutant(
        "F-2 refusals of secrets end at a bound",
        "services/secrets/__main__.py",
        "Counted(chain, clock)",
        "chain",
        FLOOD,
    ),
    Mutant(
        "F-4 who has no binding is refused at home",
        "libs/decision.py",
        "replace(record, domain_id=domain_id) if record.reason == OUT_OF_SCOPE else record",
        "record",
        TESTS + "test_service.py::test_without_the_relation_nothing_else_is_looked_at",
    ),
    Mutant(
        "F-4 step-up",
        SERVICE,
        "        if lacks := self._lacks(",
        "        if False and self._lacks(",
        REFUSED,
        ((SERVICE, "list(lacks.missing), challenge(lacks))\n", "[], StepUpRequired())\n"),),
    ),
    Mutant("F-4 age", STEP_UP, "now - login.auth_time > required.max_auth_age_s", "False", LOGIN),
    Mutant(
        "F-4 age at its limit",
        STEP_UP,
        "auth_time > required.max_auth_age_s",
        "auth_time >= required.max_auth_age_s",
        LOGIN,
    ),
    Mutant(
        "F-4 age without leeway",
        STEP_UP,
        "now - login.auth_time > required",
        "now - SKEW_S - login.auth_time > required",
        TESTS + "test_step_up.py::test_the_skew_never_makes_a_login_younger",
    ),
    Mutant("F-4 a clock ahead", STEP_UP, "    if login.auth_time > now + SKEW_S:\n", "    if False:\n", LOGIN),
    Mutant(
        "F-4 acr class",
        STEP_UP,
        "return () if login.acr in required.required_acr else",
        "return () if True else",
        LOGIN,
    ),
    Mutant(
        "F-4 no class is named",
        STEP_UP,
        '        return ("acr_unconfigured",)\n',
        "        return ()\n",
        TESTS + "test_step_up.py::test_where_nothing_is_required_nothing_is_enough_and_nothing_helps",
    ),
    Mutant(
        "F-4 all of amr",
        STEP_UP,
        "if not set(required.required_amr) <= set(login.amr) else ()",
        "if False else ()",
        LOGIN,
    ),
    Mutant(
        "F-4 only people are vouched for",
        STEP_UP,
        '    if principal.kind != "user" or principal.credential not in BY_PERSON:\n',
        "    if False:\n",
        TESTS + "test_step_up.py::test_only_a_person_who_signed_in_is_vouched_for",
    ),
    Mutant(
        "F-4 another Domain's provider",
        SERVICE,
        '        if caller.domain_id not in {"", str(terms.domain_id)}:\n',
        "        if False:\n",
        REFUSED,
    ),
    Mutant(
        "F-4 an override only narrows",
        POLICY,
        "acr = tuple(value for value in acr if value in override.required_acr)",
        "acr = override.required_acr",
        "libs/tests/test_access_policy.py::test_no_override_lets_in_what_its_policy_does_not",
    ),
    Mutant(
        "F-4 the row before the signature",
        SERVICE,
        '            await self.audit.record(named(row, "session", str(session_id)))\n',
        "",
        TESTS + "test_service.py::test_without_its_row_nothing_is_signed",
    ),
    Mutant(
        "F-4 a place is given back",
        SERVICE,
        "                await self.store.release(session_id)\n",
        "                pass\n",
        TESTS + "test_service.py::test_what_breaks_leaves_no_session_no_event_and_no_place",
    ),
    Mutant(
        "F-4 what was signed verifies",
        KEYS,
        "            Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, message)\n",
        "            pass\n",
        TESTS + "test_service.py::test_what_breaks_leaves_no_session_no_event_and_no_place",
    ),
    Mutant(
        "F-4 keys are OpenBao's",
        KEYS,
        "            return False\n",
        "            return True\n",
        TESTS + "test_keys.py::test_a_key_that_openbao_does_not_have_is_neither_published_nor_signed_with",
    ),
    Mutant(
        "F-4 a repeat of what is over",
        SERVICE,
        'session.status(self.clock.now()) != "active" or session.node_id',
        "False or session.node_id",
        TESTS + "test_service.py::test_what_is_over_is_never_signed_again",
    ),
    Mutant(
        "F-4 a repeat of a changed row",
        SERVICE,
        "        if not token.says(session.claims, session) or",
        "        if False and",
        TESTS + "test_service.py::test_a_row_that_somebody_changed_is_not_signed",
    ),
    Mutant(
        "F-4 a repeat under an old key",
        KEYS,
        "or not key.verifies(self.clock.now()) or",
        "or",
        TESTS + "test_service.py::test_a_key_that_does_not_count_any_more_signs_nothing_again",
    ),
    Mutant(
        "F-4 a lost role",
        STANDING,
        "if decision.reason in GONE}",
        "if False}",
        TESTS + "test_sessions.py::test_who_lost_relation_or_sign_in_loses_the_session_and_nobody_else",
    ),
    Mutant(
        "F-4 a sign-out",
        STANDING,
        "for one in page if one.sign_in_id in ended]",
        "for one in page if False]",
        TESTS + "test_sessions.py::test_who_lost_relation_or_sign_in_loses_the_session_and_nobody_else",
    ),
    Mutant("F-4 limit of a person", SCHEMA, ">= per_identity THEN", ">= 1000 THEN", FIFTY),
    Mutant("F-4 limit of a node", SCHEMA, ">= per_node THEN", ">= 1000 THEN", FIFTY),
    Mutant("F-4 limit of a minute", SCHEMA, ">= per_minute THEN", ">= 1000 THEN", FIFTY),
    Mutant(
        "F-4 one at a time is counted",
        SCHEMA,
        "    PERFORM pg_advisory_xact_lock(hashtextextended('access.identity:' || identity, 0));\n",
        "",
        FIFTY,
        ((SCHEMA, "    PERFORM pg_advisory_xact_lock(hashtextextended('access.node:' || node, 0));\n", ""),),
    ),
    Mutant(
        "F-4 a place runs out",
        STORE,
        "WHERE session_id = $1 AND expires_at > $17 RETURNING session_id",
        "WHERE session_id = $1 AND $17 = $17 RETURNING session_id",
        TESTS + "test_ports.py::test_without_a_place_there_is_no_session",
    ),
    Mutant(
        "F-4 the denylist",
        STORE,
        "    AND NOT EXISTS (SELECT FROM access.denylist d WHERE d.session_id = s.id)\n",
        "",
        TESTS + "test_store.py::test_revocations_at_once_announce_one",
    ),
    Mutant(
        "F-4 an ended sign-in is known",
        "services/identity/migrations/0016_keep_access_policies.py",
        "CREATE TRIGGER note_ended AFTER DELETE ON identity.sessions",
        "CREATE TRIGGER note_ended AFTER INSERT ON identity.sessions",
        ENDED + "test_what_is_ended_is_known_however_it_ended",
    ),
    Mutant(
        "F-4 stepping up ends nothing",
        SIGN_INS,
        "                await lent.execute(succeed, session.id, replaced)\n",
        "",
        ENDED + "test_signing_in_once_more_ends_nothing_until_the_new_session_ends",
    ),
    Mutant(
        "F-4 a revocation while a session is issued",
        SERVICE,
        "        if self.doubt.count != before:",
        "        if False:",
        TESTS + "test_sessions.py::test_what_is_revoked_while_a_session_is_issued_is_looked_at_once_more",
    ),
)
