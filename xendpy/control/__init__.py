"""What a host's own users and tools talk to, and the service that wires it all."""
