# identity wraps node keys, unwraps none, wraps and unwraps refresh tokens, and reads the client secrets of OpenID
# providers.
path "transit-identity/encrypt/nsk" { capabilities = ["update"] }
path "transit-identity/encrypt/refresh" { capabilities = ["update"] }
path "transit-identity/decrypt/refresh" { capabilities = ["update"] }
path "kv/data/idp/*" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
