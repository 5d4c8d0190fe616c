"""The iptables plane: the plan in the chains of kube-proxy's iptables mode, the baseline to compare with."""
