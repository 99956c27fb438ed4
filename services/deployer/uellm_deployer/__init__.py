"""The LLM deployer service."""
