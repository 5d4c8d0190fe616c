"""Where objects come from: files, or a Kubernetes API server."""
