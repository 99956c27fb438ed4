"""What the deployer does; clock, randomness, input and output enter through `ports`."""
