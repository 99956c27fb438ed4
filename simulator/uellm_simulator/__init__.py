"""Replays traces through the scheduler's own core, policies and cost model, with virtual clock and engines."""
