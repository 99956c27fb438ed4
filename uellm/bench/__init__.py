"""The evaluation live: open-loop traffic to policies and peers in turns, and what came of it."""
