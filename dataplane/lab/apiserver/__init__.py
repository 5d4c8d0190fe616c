"""A small Kubernetes API server over HTTP, for proxies in the lab and for tests: the wire protocol, no validation."""
