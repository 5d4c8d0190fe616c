"""What a steady load sees while something happens to a node's Service proxy, its connection table or its network."""
