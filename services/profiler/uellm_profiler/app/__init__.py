"""What the profiler does: profile, submit."""
