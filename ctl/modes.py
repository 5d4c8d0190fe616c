"""The modes that the command line offers."""

MODES = ("iptables", "nftables")
DEFAULT_MODE = "nftables"
