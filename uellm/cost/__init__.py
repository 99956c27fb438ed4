"""Step-time, memory and length arithmetic: one for profiler, scheduler, deployer and simulator."""
