# mesh creates, rotates and signs with the Domains' event keys; they can never be exported or backed up. A mount of
# its own, and `+` instead of `*`, so that a key's config, export and backup are out of reach.
path "transit-mesh/keys/+" {
  capabilities = ["create", "read", "update"]
  denied_parameters = {
    "exportable" = []
    "allow_plaintext_backup" = []
  }
}
path "transit-mesh/keys/+/rotate" { capabilities = ["update"] }
path "transit-mesh/sign/+" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
