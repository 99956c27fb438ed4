"""The UELLM paper's experiments: as they were published, and fair. `python -m benchmarks.paper`."""
