# access creates, rotates and signs with the Domains' session keys; they can never be exported or backed up. A mount of
# its own, and `+` instead of `*`, so that a key's config, export and backup are out of reach.
path "transit-access/keys/+" {
  capabilities = ["create", "read", "update"]
  denied_parameters = {
    "exportable" = []
    "allow_plaintext_backup" = []
  }
}
path "transit-access/keys/+/rotate" { capabilities = ["update"] }
path "transit-access/sign/+" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
