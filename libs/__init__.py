"""What at least two services use; one file a subject."""

import os

# gRPC has no setting for a least TLS version, so here is one. This list is for TLS 1.2 and below only, and its suite
# needs an RSA key, which no certificate of ours has: a handshake below TLS 1.3 finds no cipher. It is in this file
# because gRPC reads it when it is imported.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
