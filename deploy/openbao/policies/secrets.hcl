# secrets writes, reads and destroys the values of secrets.
path "kv/data/secrets/*" { capabilities = ["create", "read", "update"] }
path "kv/destroy/secrets/*" { capabilities = ["update"] }
path "kv/metadata/secrets/*" { capabilities = ["read", "delete"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
