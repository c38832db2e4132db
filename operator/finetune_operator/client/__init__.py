"""The connection to the API server: reads, writes, the Lease."""
