"""The static engine without Triton: request parsing, sampling, the padded batch and its generation thread.

Copied beside `model.py` into the version directory of a Triton model, so it imports nothing of `uellm*`.
"""
