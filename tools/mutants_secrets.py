"""Mutants of secret reads: each gate of a read, and what keeps bytes and rows the same number."""

from tools.mutant import STORY, THREATS, Mutant

SERVICE, LIMITS = "services/secrets/service.py", "services/secrets/limits.py"
ADMINISTRATION, CELLS = (
    "services/secrets/administration.py",
    "services/secrets/migrations/0006_follow_changed_limits.py",
)
SIGN_INS = "services/identity/sign_in_store.py"
GATES = "services/secrets/tests/test_service.py::test_gates_refuse_in_order"
DESTROYED = (
    "services/secrets/tests/test_administration.py"
    "::test_a_destroyed_secret_is_gone_with_its_grants_and_its_name_is_free_again"
)
ATTACKS = THREATS + "secrets/"
OWN_LIMITS = (
    "tests/e2e/stories/test_secret_limits.py::test_a_domains_own_limits_hold_from_the_next_read_on_at_every_gateway"
)
BULK = ATTACKS + "test_bulk.py::test_fifty_times_the_limit_releases_the_limit_to_the_unit"
UNRECORDED = ATTACKS + "test_record.py::test_without_audit_nothing_is_released"
TWO_REPLICAS = "services/secrets/tests/test_limits.py::test_fifty_callers_of_two_replicas_get_exactly_the_burst"
PLACES = ATTACKS + "test_reach.py::test_nobody_reads_in_anothers_place"
AWAY = ATTACKS + "test_backends.py::test_bytes_are_rows_to_the_unit"
REVOKED = ATTACKS + "test_reach.py::test_a_revoked_grant_is_refused_at_once_every_time"
ROW = "        await self.audit.record(decided(caller, found, wanted, reason))\n"
REFUSED = "            self.tally.add(domain_id, refused.code)\n            raise\n"
DENIED = "        if reason != GRANTED:\n            raise Forbidden(reason=reason, relation_path=[])\n"
RELATION = '        reason = await self.relations.check(f"node:{node_id}", "read", found.resource)\n'
TOGETHER = "services/secrets/migrations/0007_spend_together.py"
LOCK_NODES = "    PERFORM FROM secrets.limit_cells c WHERE c.id = ANY (nodes) ORDER BY c.id FOR UPDATE;\n"
CHARGE_NODE = "    UPDATE secrets.limit_cells c SET tat = node_tat WHERE c.id = node;\n"
OF_DOMAIN = "    SELECT c.tat INTO STRICT domain_tat FROM secrets.limit_cells c WHERE c.id = domain FOR UPDATE;\n"

SECRETS = (
    Mutant("F-2 a row for each read", SERVICE, ROW, "", PLACES),
    Mutant(
        "F-2 a row for each denial",
        SERVICE,
        ROW,
        ROW.replace("        await", "        if reason == GRANTED: await"),
        PLACES,
    ),
    Mutant(
        "F-2 the row is durable before the bytes",
        SERVICE,
        ROW,
        ROW.replace("await self", '__import__("asyncio").ensure_future(self').replace("reason))", "reason)))"),
        UNRECORDED,
    ),
    Mutant(
        "F-2 no audit, no bytes",
        SERVICE,
        ROW,
        "        import contextlib\n        with contextlib.suppress(Exception):\n    " + ROW,
        UNRECORDED,
    ),
    Mutant("F-2 rate limit", SERVICE, REFUSED, "            pass\n", BULK),
    Mutant("F-2 rate limit in the story", SERVICE, REFUSED, "            pass\n", STORY),
    Mutant(
        "F-2 limits before the look-up",
        SERVICE,
        "        # Limits come first",
        "        if await self.store.find(project_id, name) is None:\n            raise SecretNotFound\n"
        "        # Limits come first",
        BULK,
    ),
    Mutant(
        "F-2 refusals by limits are counted",
        SERVICE,
        REFUSED,
        "            await self.audit.record(limited(domain_id, refused.code, 1))\n            raise\n",
        BULK,
    ),
    Mutant(
        "F-2 who is drained tells what its limits refused",
        "services/secrets/__main__.py",
        '        await once("secrets.report_limited", reads.report_limited)\n',
        "",
        BULK,
    ),
    Mutant(
        "F-2 without the limits' cells nothing is read",
        LIMITS,
        '            raise LimiterUnavailable("the limits\' cells cannot be reached") from error\n',
        "            return\n",
        AWAY,
    ),
    Mutant(
        "F-2 a Domain is charged by one at a time", CELLS, "c.id = domain FOR UPDATE", "c.id = domain", TWO_REPLICAS
    ),
    Mutant(
        "F-2 a node is charged by one at a time",
        CELLS,
        "c.id = node FOR UPDATE",
        "c.id = node",
        TWO_REPLICAS,
        ((TOGETHER, LOCK_NODES, ""),),
    ),
    Mutant("F-2 who is refused by the Domain's limit keeps its own", CELLS, OF_DOMAIN, CHARGE_NODE + OF_DOMAIN, BULK),
    Mutant(
        "F-2 a node's assertion says its Domain's limits",
        "services/identity/authentication.py",
        "            secret_limits=known.secret_limits,\n",
        "",
        OWN_LIMITS,
    ),
    Mutant(
        "F-2 gateways forget former limits",
        "services/gateway/revocations.py",
        "kept.domain_id == message.domain_id",
        "not message.domain_id",
        OWN_LIMITS,
    ),
    Mutant(
        "F-2 no Domain gets past the platform's limits",
        LIMITS,
        "min(value, highest[name])",
        "value",
        "services/secrets/tests/test_settings.py::test_a_domain_says_its_limits_within_the_platforms",
    ),
    Mutant(
        "F-2 what was read under other limits still counts",
        CELLS,
        "    PERFORM secrets.follow_limits(node, node_interval, node_burst);\n",
        "",
        "services/secrets/tests/test_limits.py::test_a_limit_that_changes_holds_from_the_next_read_on",
    ),
    Mutant(
        "F-2 a Domain whose reads wait keeps connections for others",
        LIMITS,
        "row = await self._turns[domain_id, limits].ask(node_id)",
        "row = (await self._spend(domain_id, limits, [node_id]))[0]",
        "services/secrets/tests/test_limits.py"
        "::test_reads_that_wait_for_one_domains_cell_leave_connections_for_the_others",
    ),
    Mutant(
        "F-2 who charges several nodes locks them in one order",
        TOGETHER,
        LOCK_NODES,
        "",
        "services/secrets/tests/test_limits.py"
        "::test_two_replicas_that_charge_the_same_nodes_together_never_wait_in_a_circle",
    ),
    Mutant(
        "F-6 a removal is done once a check has found it",
        "services/identity/spicedb.py",
        "            await self._arrived(mark)\n",
        "",
        "services/identity/tests/test_spicedb.py::test_what_was_written_is_found_by_every_check_that_comes_after",
    ),
    Mutant("F-6 relation of the reader", SERVICE, RELATION, "        reason = GRANTED\n", PLACES),
    Mutant("F-6 a denial denies", SERVICE, DENIED, "", PLACES),
    Mutant(
        "F-6 revoke answers after SpiceDB",
        "services/identity/relations.py",
        "        await self.tuples.finish(self.checker, rows)\n",
        "        _ = rows\n",
        REVOKED,
    ),
    Mutant(
        "F-6 the node in the path is the caller",
        SERVICE,
        "    if caller.node_id != str(node_id) or caller.subject != caller.node_id:\n",
        "    if False:\n",
        PLACES,
        (("services/gateway/edge.py", 'if credential.node and "id" in request.match_info', "if False"),),
    ),
    Mutant(
        "F-6 secrets itself compares the path",
        SERVICE,
        "    if caller.node_id != str(node_id) or",
        "    if False and",
        GATES,
    ),
    Mutant(
        "F-6 the key is the caller's",
        SERVICE,
        "        if not digest.matches(",
        "        if False and not digest.matches(",
        GATES,
    ),
    Mutant("F-6 a secret of another Domain", SERVICE, " or found.domain_id != domain_id:", ":", GATES),
    Mutant("F-6 a secret that is being destroyed", SERVICE, " or not found.visible", "", GATES),
    Mutant(
        "F-6 a revoked node key",
        SIGN_INS,
        "            k.revoked_at IS NULL AND coalesce(",
        "            coalesce(",
        ATTACKS + "test_reach.py::test_a_revoked_key_reads_nothing",
    ),
    Mutant(
        "F-6 the grace of an old node key",
        SIGN_INS,
        "coalesce(k.valid_until > $2, true)",
        "coalesce(k.valid_until > $2, true) IS NOT NULL",
        ATTACKS + "test_reach.py::test_an_old_key_reads_for_its_grace_and_never_after_it",
        # What is over is ended by whoever looks for it, too.
        (
            (
                "services/identity/node_key_store.py",
                "AND valid_until <= $1 RETURNING node_id",
                "AND valid_until <= $1 AND false RETURNING node_id",
            ),
        ),
    ),
    Mutant(
        "F-6 grants end with their secret",
        ADMINISTRATION,
        "        await self.relations.revoke_readers(row)\n        await self.vault.destroy(row)\n",
        "        await self.vault.destroy(row)\n",
        DESTROYED,
    ),
    Mutant(
        "F-6 values end with their secret",
        ADMINISTRATION,
        "        await self.vault.destroy(row)\n",
        "",
        DESTROYED,
    ),
    Mutant(
        "F-6 what is destroyed is settled",
        ADMINISTRATION,
        "        await self._settle(replace(row, destroying=True))\n",
        "        await self._settle(row)\n",
        DESTROYED,
    ),
)
