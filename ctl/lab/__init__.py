"""What `hotplane lab` does with labs that are up: programs their nodes, sends packets through them."""
