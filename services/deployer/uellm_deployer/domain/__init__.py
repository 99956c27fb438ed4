"""What the deployer knows and decides, without input or output."""
