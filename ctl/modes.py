"""The modes that the command line offers."""

MODES = ("iptables", "nftables", "ebpf")
DEFAULT_MODE = "nftables"
