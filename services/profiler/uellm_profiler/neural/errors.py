"""What can be wrong with an adapter."""

from __future__ import annotations


class AdapterError(RuntimeError):
    """An adapter, or the base model under it, can't be used; the message says what to do."""
