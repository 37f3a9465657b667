"""What the columns of schema `identity` may hold."""

from libs.columns import ColumnClass as Is
from libs.columns import Declared

COLUMNS: Declared = {
    "domains": {"name": Is.METADATA, "slug": Is.IDENTIFIER, "description": Is.METADATA, "region": Is.METADATA},
    "projects": {"name": Is.METADATA, "slug": Is.IDENTIFIER, "description": Is.METADATA},
    "resources": {"kind": Is.METADATA, "external_ref": Is.IDENTIFIER, "origin": Is.METADATA},
    "nodes": {"public_key": Is.PUBLIC_KEY},
    "node_secret_keys": {"kid": Is.IDENTIFIER, "wrapped": Is.CIPHERTEXT, "fingerprint": Is.HASH},
    "heartbeats": {"binary_checksum": Is.HASH, "binary_version": Is.METADATA, "nat_summary": Is.METADATA},
    "bootstrap_tokens": {
        "kind": Is.METADATA,
        "env_prefix": Is.METADATA,
        "selector": Is.IDENTIFIER,
        "digest": Is.HASH,
        "public_key": Is.PUBLIC_KEY,
    },
    "relation_tuples": {
        "resource_type": Is.METADATA,
        "resource_id": Is.IDENTIFIER,
        "relation": Is.METADATA,
        "subject_type": Is.METADATA,
        "subject_id": Is.IDENTIFIER,
        "state": Is.METADATA,
    },
    "event_outbox": {
        "type": Is.METADATA,
        "scope": Is.IDENTIFIER,
        "payload": Is.METADATA,
        "refused_code": Is.METADATA,
    },
    "endpoints": {"endpoint": Is.METADATA, "nat_type": Is.METADATA},
    "key_rotations": {"public_key": Is.PUBLIC_KEY, "kid": Is.IDENTIFIER},
    "idp_bindings": {
        "issuer": Is.METADATA,
        "client_id": Is.IDENTIFIER,
        "client_secret_ref": Is.REFERENCE,
        "discovery_url": Is.METADATA,
        "claim_mappings": Is.METADATA,
        "required_acr": Is.METADATA,
        "required_amr": Is.METADATA,
        "jit_policy": Is.METADATA,
        "status": Is.METADATA,
        "alias": Is.METADATA,
        "scopes": Is.METADATA,
        "accepted_amr": Is.METADATA,
        "algorithms": Is.METADATA,
    },
    "identities": {"subject": Is.PERSONAL, "display_name": Is.PERSONAL, "email": Is.PERSONAL},
    "pending_sign_ins": {"state_digest": Is.HASH, "return_to": Is.METADATA, "acr_values": Is.METADATA},
    "sessions": {"digest": Is.HASH, "acr": Is.METADATA, "amr": Is.METADATA},
    "device_codes": {
        "device_digest": Is.HASH,
        "user_code_digest": Is.HASH,
        "client_id": Is.IDENTIFIER,
        "acr_values": Is.METADATA,
        "acr": Is.METADATA,
        "amr": Is.METADATA,
    },
    "access_tokens": {"digest": Is.HASH, "acr": Is.METADATA, "amr": Is.METADATA},
}
