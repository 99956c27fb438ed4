"""Pure parts of the profiler: prediction, defaults, profiles, refusals."""
