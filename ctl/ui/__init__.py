"""The page of `lab ui` and `run --ui`: what it asks (view), its answers over HTTP (server), and its files (page)."""
