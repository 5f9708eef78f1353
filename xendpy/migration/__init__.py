"""The algorithms of a migration; blocking, and neutral to driver and format."""
