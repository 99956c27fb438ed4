"""What `uellm traffic` reads."""

from __future__ import annotations

import pytest

from uellm.cli.traffic import read_shares


def test_shares_are_read() -> None:
    assert read_shares(["main=0.9", "deployments/canary=10%"]) == {
        "deployments/main": 0.9,
        "deployments/canary": pytest.approx(0.1),
    }


@pytest.mark.parametrize("text", ["main", "main=", "=1", "main=2", "main=-1", "main=nan", "main=half"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be DEPLOYMENT=SHARE"):
        read_shares([text])


def test_two_shares_of_one_are_refused() -> None:
    with pytest.raises(ValueError, match="deployments/a has two shares"):
        read_shares(["a=1", "deployments/a=0"])
