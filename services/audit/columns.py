"""What the columns of schema `audit` may hold."""

from libs.columns import ColumnClass, Declared

COLUMNS: Declared = {
    "chains": {"chain": ColumnClass.IDENTIFIER, "entry_hash": ColumnClass.HASH},
    "entries": {
        "chain": ColumnClass.IDENTIFIER,
        "prev_hash": ColumnClass.HASH,
        "entry_hash": ColumnClass.HASH,
        "canonical": ColumnClass.METADATA,
        "pseudonym": ColumnClass.HASH,
        "relation": ColumnClass.METADATA,
        "object_type": ColumnClass.METADATA,
        "object_id": ColumnClass.IDENTIFIER,
        "reason": ColumnClass.METADATA,
        "correlation_id": ColumnClass.IDENTIFIER,
        "context": ColumnClass.METADATA,
    },
    "idempotency": {"chain": ColumnClass.IDENTIFIER},
    "personal": {
        "chain": ColumnClass.IDENTIFIER,
        "pseudonym": ColumnClass.HASH,
        "salt": ColumnClass.PERSONAL,
        "subject_id": ColumnClass.PERSONAL,
        "subject_kind": ColumnClass.METADATA,
        "client_ip": ColumnClass.PERSONAL,
        "user_agent": ColumnClass.PERSONAL,
    },
    "tree": {"chain": ColumnClass.IDENTIFIER, "hash": ColumnClass.HASH},
    "checkpoints": {
        "chain": ColumnClass.IDENTIFIER,
        "root": ColumnClass.HASH,
        "note": ColumnClass.METADATA,
    },
    "segments": {"chain": ColumnClass.IDENTIFIER},
    "archived": {"chain": ColumnClass.IDENTIFIER, "etag": ColumnClass.METADATA},
    "erasures": {"chain": ColumnClass.IDENTIFIER, "pseudonym": ColumnClass.HASH},
}
