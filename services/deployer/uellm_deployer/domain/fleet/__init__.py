"""Several models on one machine: ways to place each, and the choice among them as a mixed integer linear programme."""
