"""The outside: devices, files, Triton, Redis."""
