"""What the rules of access speak about: nothing, as long as sessions are not provisioned."""
