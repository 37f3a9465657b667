"""What each column of the schema may hold; checked at every start."""

from libs.columns import ColumnClass

COLUMNS = {
    "secrets": {
        "name": ColumnClass.IDENTIFIER,
        "reference": ColumnClass.REFERENCE,
    },
    "untold": {"node_ids": ColumnClass.IDENTIFIER, "reason": ColumnClass.METADATA},
    "event_outbox": {
        "type": ColumnClass.METADATA,
        "scope": ColumnClass.IDENTIFIER,
        "payload": ColumnClass.METADATA,
        "refused_code": ColumnClass.METADATA,
    },
}
