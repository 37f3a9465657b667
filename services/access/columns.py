"""What each column of the schema may hold; checked at every start."""

from libs.columns import ColumnClass as Is
from libs.columns import Declared

COLUMNS: Declared = {
    "signing_keys": {"kid": Is.IDENTIFIER, "public_key": Is.PUBLIC_KEY},
    "sessions": {
        "kind": Is.METADATA,
        "target": Is.METADATA,
        "revoke_reason": Is.METADATA,
        "kid": Is.IDENTIFIER,
        "claims": Is.METADATA,
        "seal": Is.HASH,
        "sign_in_ids": Is.IDENTIFIER,
    },
    "activity": {"report": Is.METADATA},
    "requests": {"request_digest": Is.HASH, "body_digest": Is.HASH},
    "event_outbox": {
        "type": Is.METADATA,
        "scope": Is.IDENTIFIER,
        "payload": Is.METADATA,
        "refused_code": Is.METADATA,
    },
}
