"""How operators write, list, grant and destroy secrets. Values go in and never come back.

A write touches OpenBao and PostgreSQL, and a crash may fall between them. So PostgreSQL notes first that it is coming,
OpenBao's check-and-set decides it, and PostgreSQL follows; whoever meets a note that was left behind asks OpenBao what
became of it and finishes the step. Until then readers get the version before. A destruction is begun and finished in
the same way. Of a change that OpenBao or identity makes at once, PostgreSQL notes first whom it concerns, and they are
told afterwards.
"""

from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

from libs.custody import Secret
from libs.decision import GRANTED, Record, at_home
from libs.errors import Forbidden, NotFound, PreconditionFailed, SecretNotFound, SecretVersionNotFound
from libs.ids import uuid7
from libs.principal import Principal
from services.secrets.model import Page, Place, SecretRow, is_name
from services.secrets.ports import Audit, Cursors, Fleet, Relations, Store, Vault

NO_WAIT = timedelta()
# Longer than any request lives, so that a write under way is never taken for one left behind.
LEFT_BEHIND = timedelta(minutes=1)


@dataclass(frozen=True)
class SecretsAdmin:
    """Secrets as operators see them."""

    fleet: Fleet
    store: Store
    relations: Relations
    audit: Audit
    vault: Vault
    cursors: Cursors

    async def put(self, caller: Principal, project_id: UUID, name: str, value: Secret, expected_version: int) -> int:
        """Write a version when the current one is the expected (0: when there is none), and return its number."""
        place = await self._allowed(caller, "secret.put", "manage", project_id)
        row = await self._settled(project_id, name)
        if (row.current_version if row else 0) != expected_version:
            raise PreconditionFailed
        row = row or SecretRow(uuid7(), place.domain_id, project_id, name)
        await self._record(caller, "secret.put", "manage", row, version=[str(expected_version + 1)])
        # Asked for before anything is written: who reads it is told with the new version or not at all.
        readers = await self.relations.readers(row)
        if not await self.store.begin_put(row, expected_version):
            raise PreconditionFailed
        try:
            version = await self.vault.write(row, value, expected_version)
        except PreconditionFailed:
            # Somebody else's write won; its number is the truth for the next caller.
            await self.store.settle(row, await self.vault.current_version(row), readers)
            raise
        await self.store.settle(row, version, readers)
        return version

    async def page(self, caller: Principal, project_id: UUID, cursor: str, limit: int) -> Page:
        """Return a page of names and current versions."""
        place = await self._allowed(caller, "secret.list", "read", project_id)
        of = f"secrets/{project_id}"
        after = str(self.cursors.open(of, caller.reference, cursor)["name"]) if cursor else ""
        for row in await self.store.unsettled(project_id, NO_WAIT):
            await self._settle(row)
        await self.audit.record(_decided(caller, "secret.list", "read", str(place.domain_id), project_id, GRANTED))
        rows = await self.store.page(project_id, after, limit + 1)
        more = self.cursors.seal(of, caller.reference, {"name": rows[limit - 1].name}) if len(rows) > limit else ""
        return Page(tuple(rows[:limit]), more)

    async def destroy(self, caller: Principal, project_id: UUID, name: str) -> None:
        """Destroy a secret with all its versions and grants."""
        await self._allowed(caller, "secret.destroy", "manage", project_id)
        row = await self._existing(project_id, name)
        await self._record(caller, "secret.destroy", "manage", row)
        await self.store.begin_destroy(row, await self.relations.readers(row))
        await self._settle(replace(row, destroying=True))

    async def destroy_version(self, caller: Principal, project_id: UUID, name: str, version: int) -> None:
        """Destroy one version; the number is never used again."""
        await self._allowed(caller, "secret.destroy_version", "manage", project_id)
        row = await self._existing(project_id, name)
        if not 1 <= version <= row.current_version:
            raise SecretVersionNotFound
        await self._record(caller, "secret.destroy_version", "manage", row, version=[str(version)])
        note = await self.store.note(row, await self.relations.readers(row), "secret_destroyed")
        await self.vault.destroy_version(row, version)
        await self.store.tell(note)

    async def grant(self, caller: Principal, project_id: UUID, name: str, node_id: UUID) -> None:
        """Let a node of the same project read a secret."""
        await self._allowed(caller, "reader.grant", "manage", project_id)
        row = await self._for_node(project_id, name, node_id)
        await self._record(caller, "reader.grant", "manage", row, node=[str(node_id)])
        note = await self.store.note(row, [node_id], "secret_granted")
        # Told after the grant: a node that asked before it would be refused and not ask again.
        await self.relations.grant_reader(row, node_id)
        await self.store.tell(note)

    async def revoke(self, caller: Principal, project_id: UUID, name: str, node_id: UUID) -> None:
        """Stop a node from reading a secret; no read succeeds once it has returned."""
        await self._allowed(caller, "reader.revoke", "manage", project_id)
        row = await self._for_node(project_id, name, node_id)
        await self._record(caller, "reader.revoke", "manage", row, node=[str(node_id)])
        note = await self.store.note(row, [node_id], "secret_revoked")
        await self.relations.revoke_reader(row, node_id)
        await self.store.tell(note)

    async def finish_left_behind(self) -> int:
        """Finish every step that a crash left behind, and say how many there were."""
        rows = await self.store.unsettled(None, LEFT_BEHIND)
        for row in rows:
            await self._settle(row)
        notes = await self.store.untold(LEFT_BEHIND)
        for note in notes:
            # Whether the change was made, nobody knows: a node that is told for nothing finds what it had.
            await self.store.tell(note)
        return len(rows) + len(notes)

    async def _allowed(self, caller: Principal, action: str, permission: str, project_id: UUID) -> Place:
        # The relation is asked whether or not the project exists, so that a stranger learns nothing from the answer.
        place = await self.fleet.project(project_id)
        reason = await self.relations.check(caller.reference, permission, f"project:{project_id}")
        if reason != GRANTED:
            chain = str(place.domain_id) if place else ""
            row = _decided(caller, action, permission, chain, project_id, reason)
            await self.audit.record(at_home(row, caller.domain_id))
            raise Forbidden(reason=reason, relation_path=[])
        if place is None:
            raise NotFound
        return place

    async def _record(
        self, caller: Principal, action: str, permission: str, row: SecretRow, **names: list[str]
    ) -> None:
        decided = _decided(caller, action, permission, str(row.domain_id), row.project_id, GRANTED)
        context = {"project": [str(row.project_id)], **names}
        await self.audit.record(replace(decided, object_type="secret", object_id=str(row.id), context=context))

    async def _existing(self, project_id: UUID, name: str) -> SecretRow:
        row = await self._settled(project_id, name) if is_name(name) else None
        if row is None or not row.visible:
            raise SecretNotFound
        return row

    async def _for_node(self, project_id: UUID, name: str, node_id: UUID) -> SecretRow:
        row = await self._existing(project_id, name)
        node = await self.fleet.node(node_id)
        if node is None or node.project_id != project_id:
            raise NotFound("there is no such node in the project")
        return row

    async def _settled(self, project_id: UUID, name: str) -> SecretRow | None:
        row = await self.store.find(project_id, name)
        if row is None or (row.pending_version is None and not row.destroying):
            return row
        await self._settle(row)
        return await self.store.find(project_id, name)

    async def _settle(self, row: SecretRow) -> None:
        if not row.destroying:
            readers = await self.relations.readers(row)
            await self.store.settle(row, await self.vault.current_version(row), readers)
            return
        # Grants go first: a relation that outlives its secret would outlive every means to remove it.
        await self.relations.revoke_readers(row)
        await self.vault.destroy(row)
        await self.store.remove(row.id)


def _decided(caller: Principal, action: str, relation: str, chain: str, project_id: UUID, reason: str) -> Record:
    return Record(chain, action, relation, "project", str(project_id), reason, caller.subject, caller.kind)
