"""What each column of the schema may hold; checked at every start."""

from libs.columns import ColumnClass as Is

COLUMNS = {
    "signing_keys": {"kid": Is.IDENTIFIER, "public_key": Is.PUBLIC_KEY},
    "event_log": {"scope": Is.IDENTIFIER, "type": Is.METADATA, "envelope": Is.METADATA, "digest": Is.HASH},
    "event_outbox": {
        "type": Is.METADATA,
        "scope": Is.IDENTIFIER,
        "payload": Is.METADATA,
        "refused_code": Is.METADATA,
    },
}
