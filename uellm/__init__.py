"""UELLM: large language models on NVIDIA Triton, with deadlines kept."""
