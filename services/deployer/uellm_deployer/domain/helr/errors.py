"""Why there is no plan."""

from __future__ import annotations

from uellm.rpc.errors import ResourceExhaustedError


class DoesNotFitError(ResourceExhaustedError):
    """No plan that the constraints allow fits the devices.

    Attributes:
        missing_bytes: the least that, free on every device more, would let the model fit; None: more memory would not.
        needed_bytes: weights and cache of one copy.
        free_bytes: of all allowed devices together, less what framework and activations take.
    """

    def __init__(self, missing_bytes: int | None, needed_bytes: int, free_bytes: int) -> None:
        if missing_bytes is None:
            advice = "no memory would change that: the links, the number of stages or the group sizes forbid every plan"
        else:
            advice = f"{missing_bytes:,} bytes more on every device would do"
        super().__init__(
            "memory",
            f"the model does not fit: weights and cache need {needed_bytes:,} bytes, the devices have {free_bytes:,} "
            f"for them; {advice}",
            reason="OUT_OF_DEVICE_MEMORY",
        )
        self.missing_bytes, self.needed_bytes, self.free_bytes = missing_bytes, needed_bytes, free_bytes


class SloUnreachableError(ResourceExhaustedError):
    """The model fits, but no plan keeps the promised times.

    Attributes:
        first_token_seconds: the least that any plan reaches, whatever the other.
        output_token_seconds: likewise.
    """

    def __init__(self, first_token_seconds: float, output_token_seconds: float) -> None:
        super().__init__(
            "slo",
            "no plan keeps the objectives for time; each by itself could be at best: first token "
            f"{first_token_seconds:.4g} s, output token {output_token_seconds:.4g} s",
            reason="SLO_UNREACHABLE",
        )
        self.first_token_seconds, self.output_token_seconds = first_token_seconds, output_token_seconds
