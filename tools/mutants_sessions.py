"""Mutants of privileged sessions that an attack over the wire must find."""

from tools.mutant import THREATS, Mutant

SERVICE, STEP_UP, STORE = "services/access/service.py", "libs/step_up.py", "services/access/store.py"
ATTACKS = THREATS + "access/"
KILLS = ATTACKS + "test_kills.py::test_a_kill_at_each_step_leaves_all_or_nothing"
ROW = '            await self.audit.record(named(row, "session", str(session_id)))\n'
OPENED = "            return await self._opened(session, caller)\n"

SESSIONS = (
    Mutant(
        "F-5 step-up",
        SERVICE,
        "        if lacks := self._lacks(",
        "        if False and self._lacks(",
        ATTACKS + "test_logins.py::test_a_login_that_is_not_enough_issues_nothing",
        ((SERVICE, "list(lacks.missing), challenge(lacks))\n", "[], StepUpRequired())\n"),),
    ),
    Mutant(
        "F-5 age without leeway",
        STEP_UP,
        "now - login.auth_time > required",
        "now - SKEW_S - login.auth_time > required",
        ATTACKS + "test_logins.py::test_the_limit_of_age_is_kept_to_the_moment",
    ),
    Mutant(
        "F-5 the challenge says what helps",
        "services/gateway/problems.py",
        '        parts.append(f\'acr_values="{" ".join(values)}"\')\n',
        "        pass\n",
        ATTACKS + "test_logins.py::test_the_challenge_followed_to_the_letter_gets_through",
    ),
    Mutant(
        "F-5 another Domain's provider",
        SERVICE,
        '        if caller.domain_id not in {"", str(terms.domain_id)}:\n',
        "        if False:\n",
        ATTACKS + "test_callers.py::test_another_domains_provider_vouches_for_nobody_here",
    ),
    Mutant("F-5 a row for each session", SERVICE, ROW, "", KILLS),
    Mutant(
        "F-5 the row before the session",
        SERVICE,
        ROW + OPENED,
        OPENED.replace("return", "issued =") + ROW + "            return issued\n",
        KILLS,
    ),
    Mutant(
        "F-5 a place is given back",
        SERVICE,
        "                await self.store.release(session_id)\n",
        "                pass\n",
        KILLS,
    ),
    Mutant(
        "F-5 limit of a person",
        "services/access/migrations/0004_bind_sessions.py",
        ">= per_identity THEN",
        ">= 1000 THEN",
        ATTACKS + "test_limits.py::test_fifty_requests_at_once_never_exceed_the_limit_of_a_person",
    ),
    Mutant(
        "F-5 limit of a node",
        "services/access/migrations/0004_bind_sessions.py",
        ">= per_node THEN",
        ">= 1000 THEN",
        ATTACKS + "test_limits.py::test_fifty_requests_at_once_never_exceed_the_limit_of_a_node",
    ),
    Mutant(
        "F-5 a repeat tells of a login that is enough",
        SERVICE,
        "        if step_up(terms.policy.required(",
        "        if False and step_up(terms.policy.required(",
        ATTACKS + "test_repeats.py::test_a_repeat_under_a_tightened_policy_gets_nothing",
    ),
    Mutant(
        "F-5 a session runs out",
        STORE,
        "WHERE id = $1 AND node_id = $2 AND kind = $3 AND revoked_at IS NULL AND expires_at > $4\n",
        "WHERE id = $1 AND node_id = $2 AND kind = $3 AND revoked_at IS NULL\n",
        ATTACKS + "test_sessions.py::test_a_session_runs_out_by_itself",
    ),
    Mutant(
        "F-5 a sign-out",
        "services/access/standing.py",
        "            elif not ended.isdisjoint(one.sign_in_ids):\n",
        "            elif False:\n",
        ATTACKS + "test_sessions.py::test_signing_out_ends_the_stepped_up_session_and_its_token_at_the_node",
    ),
    Mutant(
        "F-5 the keys of the cloud",
        "services/access/target.py",
        " or mapped.is_link_local)",
        ")",
        ATTACKS + "test_sessions.py::test_a_target_that_a_node_could_misread_is_refused_before_anything_else",
    ),
)
