"""Probabilities of balancing rules."""

from functools import lru_cache


@lru_cache(maxsize=4096)
def probability(n: int, places: int = 1) -> str:
    """places/n as iptables prints it: kube-proxy writes ten decimals, the kernel keeps 31 bits of them."""
    return f"{round(float(f'{places / n:.10f}') * 0x80000000) / 0x80000000:.11f}"
