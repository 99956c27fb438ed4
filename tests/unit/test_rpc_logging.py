"""Logs as lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, sys
import structlog
from uellm.rpc.logging import configure_logging

configure_logging("profiler", "info", sys.argv[1])
log = structlog.stdlib.get_logger("uellm.test")
log.debug("hidden")
log.info("shown", tokens=3)
logging.getLogger("library").warning("from %s", "elsewhere")
try:
    prompt = "private text"
    len(prompt) / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def run(format_: str) -> str:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, format_], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == ""
    return done.stderr


def test_json_when_not_on_a_terminal() -> None:
    shown, foreign, failed = map(json.loads, run("auto").splitlines())
    assert (shown["event"], shown["tokens"], shown["level"], shown["logger"]) == ("shown", 3, "info", "uellm.test")
    assert (foreign["event"], foreign["level"], foreign["logger"]) == ("from elsewhere", "warning", "library")
    assert "ZeroDivisionError" in failed["exception"]
    assert {line["service"] for line in (shown, foreign, failed)} == {"profiler"}
    assert all(line["timestamp"].endswith("Z") for line in (shown, foreign, failed))


def test_console_shows_tracebacks_without_variables() -> None:
    shown = run("console")
    assert "hidden" not in shown
    assert "tokens" in shown
    assert "ZeroDivisionError" in shown
    # The line of the source is read from no file here; the values of variables would be.
    assert "private text" not in shown
