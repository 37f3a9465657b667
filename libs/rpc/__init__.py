"""gRPC between our processes: one server, one guard, one kind of channel."""
