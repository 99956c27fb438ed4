"""Engines that the deployer writes into a Triton model repository."""
