"""How a predictor of answer lengths comes to be: collect labels, train, evaluate. Needs the extra `learning`."""

from pathlib import Path

DATA = Path(__file__).with_name("data")
"""The project's prompts, and the lengths of the default model's answers to them and to public prompt sets."""
