"""Ctrl-C, also where the exception that it raises is lost."""

from __future__ import annotations

import os
import signal

import pytest

from uellm.cli.interrupts import Interrupts


class InFinaliser:
    """Is interrupted where exceptions are dropped."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1_000):  # the handler runs between two instructions of Python
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_is_lost_is_found_again() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        dropped = InFinaliser()
        del dropped
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()


def test_an_interrupt_strikes_at_once_and_the_handler_before_is_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def call_that_is_interrupted() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("the call was cancelled") from None


def test_what_an_interrupt_became_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, Interrupts():
        call_that_is_interrupted()
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(RuntimeError, match="of its own"), Interrupts():
        raise RuntimeError("of its own")
