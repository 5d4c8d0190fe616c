"""The benchmark: Service data planes side by side in one lab, with figures that say how far to trust them."""
