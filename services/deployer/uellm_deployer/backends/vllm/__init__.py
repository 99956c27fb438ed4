"""The continuous engine: a decoupled model of Triton's Python backend around vLLM."""
