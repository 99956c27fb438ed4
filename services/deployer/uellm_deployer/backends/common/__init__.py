"""What all engines have in common: requests, rows, the text of their tokens, and the way to Triton."""
