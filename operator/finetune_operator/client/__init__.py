"""Access to the API server: requests, writes, lookups, the Lease."""
