"""The static engine: a decoupled model of Triton's Python backend around transformers."""
