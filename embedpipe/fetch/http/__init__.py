"""HTTP: a client with deadlines, an SSRF guard, robots.txt and opt-out headers."""
