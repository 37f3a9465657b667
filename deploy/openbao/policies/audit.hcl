# audit makes and reads the chains' peppers, signs checkpoints, and moves and lists their anchors.
path "kv/data/audit/*" { capabilities = ["create", "read", "update"] }
path "kv/metadata/audit/" { capabilities = ["list"] }
path "transit-audit/sign/acp" { capabilities = ["update"] }
path "transit-audit/keys/acp" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
