"""The command `uellm`."""
