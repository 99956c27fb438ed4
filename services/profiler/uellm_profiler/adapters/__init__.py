"""What the profiler needs from outside: tokenizers, Redis, metrics."""
