"""The embedded stack: Redis, Triton and the default model on this machine."""
