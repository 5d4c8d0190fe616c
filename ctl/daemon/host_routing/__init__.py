"""Which packets of this node's pods may go past its stack: policies, other programs' rules, and who tells the plane."""
