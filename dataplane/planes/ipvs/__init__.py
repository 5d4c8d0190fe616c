"""A baseline to compare with: what kube-proxy's ipvs mode does with a plan, where the kernel has IPVS."""
