"""The network face: who may dial, what is said on port 8002, and both ends of a migration."""
