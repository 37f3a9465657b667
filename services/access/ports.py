"""What the rules of access need: nothing, as long as sessions are not provisioned."""
