"""The command line and the daemon."""

VERSION = "0.1.0"
