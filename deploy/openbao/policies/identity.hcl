# identity wraps node keys, unwraps none, and reads the client secrets of OpenID providers.
path "transit-identity/encrypt/nsk" { capabilities = ["update"] }
path "kv/data/idp/*" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
