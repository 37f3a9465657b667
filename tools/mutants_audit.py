"""Mutants of the record that an attack over the wire must find."""

from tools.mutant import THREATS, Mutant

VERIFICATION, PROOFS, CHECKPOINTS, ARCHIVE, RESTORES = (
    f"services/audit/{name}.py" for name in ("verification", "proofs", "checkpoints", "archive", "restores")
)
MIRROR = THREATS + "audit/test_archive.py::"
ATTACKS = THREATS + "audit/test_rewrites.py::"
OFFLINE = "tests/e2e/stories/test_audit_offline.py::"
WITNESS, VERIFY = "libs/witness.py", "cli/audit_verify.py"
SHORTER = "        elif head.seq < anchored.size:\n"
RESTORED = THREATS + "audit/test_restore.py::"
SUBSTITUTED = RESTORED + "test_a_substituted_backup_is_refused_until_it_is_acknowledged"
ACKNOWLEDGED = RESTORED + "test_an_acknowledgement_that_is_not_exactly_that_changes_nothing"
SAME = "            await self._require_same(chain, anchored, run)\n"
# Who appends would find what these attacks leave before a checkpoint does, and who looks at all rows of a new storage.
SEEN = (RESTORES, "            await self._require_seen(chain, seen.head)\n", "            pass\n")
CONTINUES = (RESTORES, "            await self.checkpoints.require_continues(chain, anchor)\n", "")
WHOLE = (RESTORES, "                await self.checkpoints.require_whole(chain, anchor)\n", "")

AUDIT = (
    Mutant(
        "A-1 the anchor is asked",
        VERIFICATION,
        " if run.begin < anchored.size else None\n",
        " if False else None\n",
        ATTACKS + "test_a_chain_that_is_recomputed_with_its_tree_is_found_by_the_anchor",
    ),
    Mutant(
        "A-1 a chain is not shorter than its anchor",
        VERIFICATION,
        SHORTER,
        SHORTER.replace("head.seq < anchored.size", "False"),
        ATTACKS + "test_a_tail_that_is_cut_off_with_its_head_is_found",
    ),
    Mutant(
        "A-1 a checkpoint goes on from the anchor",
        CHECKPOINTS,
        SAME,
        "",
        ATTACKS + "test_a_chain_that_is_cut_off_and_grown_beyond_its_anchor_is_found",
        (SEEN, CONTINUES, WHOLE),
    ),
    Mutant(
        "A-1 the last leaf is the last entry",
        CHECKPOINTS,
        "        if row is None or leaf_hash(row.entry_hash) != stored[leaf]:\n",
        "        if row is None:\n",
        ATTACKS + "test_a_chain_that_is_recomputed_from_an_entry_on_is_found_there",
        (SEEN, WHOLE),
    ),
    Mutant(
        "A-1 nothing is shown that does not verify",
        PROOFS,
        "            verify_inclusion(leaf_hash(row.entry_hash), seq - 1, size, hashes, shown.signed.root)\n",
        "            pass\n",
        ATTACKS + "test_a_proof_of_a_rewritten_entry_is_not_given",
    ),
    Mutant(
        "A-1 a personal record that nobody erased is missed",
        "services/audit/entry.py",
        "        if erased\n",
        "        if True\n",
        THREATS + "audit/test_columns.py::test_a_personal_record_that_nobody_erased_is_missed",
    ),
    Mutant(
        "A-5 a head never goes back",
        "services/audit/migrations/0004_refuse_more_changes.py",
        "NEW.seq < OLD.seq OR ",
        "",
        "services/audit/tests/test_retention.py::test_a_head_goes_on_and_never_back",
    ),
    Mutant(
        "A-5 a session waits for the disk",
        "libs/pg.py",
        '            "synchronous_commit": "on",\n',
        "",
        "services/audit/tests/test_durability.py::test_a_session_waits_for_the_disk_whatever_is_set_elsewhere",
    ),
    Mutant(
        "A-4 archive and database are compared entry by entry",
        ARCHIVE,
        "        if ours != theirs and seq <= last:\n",
        "        if seq < 0:\n",
        MIRROR + "test_an_object_that_is_not_what_was_archived_is_named",
    ),
    Mutant(
        "A-4 each side is held against what was signed",
        ARCHIVE,
        "(root == covered.root for root in roots[covered.size]) if covered else (True, True)",
        "(True, True)",
        MIRROR + "test_a_database_that_is_rewritten_behind_an_intact_archive_is_named",
    ),
    Mutant(
        "A-4 what the database has forgotten is compared, too",
        ARCHIVE,
        "noted.keys() | {first async for first in self.objects.firsts(chain, epoch)}",
        "noted.keys()",
        MIRROR + "test_a_database_that_is_rewritten_behind_an_intact_archive_is_named",
    ),
    Mutant(
        "A-4 an object is never replaced",
        "services/audit/archive_store.py",
        'mode="create"',
        'mode="overwrite"',
        "services/audit/tests/test_archive_ports.py::test_an_object_is_created_once",
    ),
    Mutant(
        "A-4 the archive is reached over TLS alone",
        "services/audit/archive_store.py",
        '            client_options={"allow_http": False},\n',
        "",
        "services/audit/tests/test_archive_failures.py::"
        "test_nothing_is_sent_without_tls_even_where_the_environment_allows_it",
    ),
    Mutant(
        "audit: a stream ends with its reader's relation",
        "services/audit/service.py",
        "            if self.clock.now() - asked_at >= ASK_AGAIN:\n",
        "            if False:\n",
        THREATS + "audit/test_streams.py::test_an_export_is_cut_off_when_its_auditor_is_one_no_longer",
    ),
    Mutant(
        "A-1 a reader recomputes each hash",
        WITNESS,
        "        if own != entry.entry_hash:\n",
        "        if False:\n",
        OFFLINE + "test_an_export_that_was_altered_is_found_without_the_edge",
    ),
    Mutant(
        "A-1 a reader holds the root against what was signed",
        WITNESS,
        "        if own != root:\n",
        "        if False:\n",
        OFFLINE + "test_an_export_that_was_altered_is_found_without_the_edge",
    ),
    Mutant(
        "A-1 an export without its end is not whole",
        WITNESS,
        '            looked(self.size)\n        return self._wrong("incomplete")\n',
        "            looked(self.size)\n        return self.end(last)\n",
        OFFLINE + "test_a_stream_without_its_end_is_not_taken_for_the_chain",
    ),
    Mutant(
        "A-1 what was verified once is remembered",
        VERIFY,
        "        wanted.append(Checkpoint(key.name, remembered.known.size, remembered.known.root))\n",
        "        pass\n",
        OFFLINE + "test_a_forked_history_is_an_alarm_for_who_remembers_even_when_it_is_signed",
    ),
    Mutant("A-3 a chain goes on from its anchor", *CONTINUES, SUBSTITUTED),
    Mutant(
        "A-3 each row is looked at in a new storage",
        *WHOLE,
        SUBSTITUTED,
    ),
    Mutant(
        "A-3 another server, database or table is checked again",
        "services/audit/guard.py",
        "checked.server != server or ",
        "",
        SUBSTITUTED,
        (("services/audit/guard.py", "        if server != self._surveyed:\n", "        if not self._surveyed:\n"),),
    ),
    Mutant(
        "A-3 what was seen is not gone",
        *SEEN,
        "services/audit/tests/test_restores.py::"
        "test_what_is_cut_off_under_the_writer_is_found_in_the_statement_that_would_append",
    ),
    Mutant(
        "A-3 only a key that is trusted acknowledges",
        "services/audit/acknowledgements.py",
        "        raise AcknowledgementNotTrusted\n",
        '        return note.rpartition("\\n\\n")[0] + "\\n", self.keys[0]\n',
        ACKNOWLEDGED,
    ),
    Mutant(
        "A-3 what is acknowledged is what is there",
        "services/audit/acknowledgements.py",
        "        if state.claim not in (claim, await self._after(claim, digest)):\n",
        "        if False:\n",
        ACKNOWLEDGED,
    ),
)
