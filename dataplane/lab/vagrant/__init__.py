"""The lab on virtual machines: the same places and addresses as `hotplane lab`'s, each node a machine of its own."""
