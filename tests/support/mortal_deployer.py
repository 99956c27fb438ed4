"""The deployer as a process that kills itself at a chosen effect: `python -m tests.support.mortal_deployer ORDERS ...`.

The product's own `main` runs; only here its ways to the outside are counted, and engines are light ones. Reads the
arguments of a deployer from each line of standard input, lets it live in a fork (which saves the imports), and says
with which status it ended.

ORDERS is a file that is empty, or holds a number: at the n-th point of the next operation the process is killed. Points
are before each effect, and half way through those that can be half done. Then the file is emptied, so that the next
process lives.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from uellm_deployer import __main__ as deployer
from uellm_deployer.adapters import journal, triton_config
from uellm_deployer.adapters.cpu import measured_rates
from uellm_deployer.adapters.files import write_file
from uellm_deployer.adapters.journal import FileJournal
from uellm_deployer.adapters.publisher import RedisPublisher
from uellm_deployer.adapters.repository import ModelRepository
from uellm_deployer.adapters.triton_control import TritonControl
from uellm_deployer.app.ports import JournalEntry, RepositoryEntry
from uellm_deployer.backends import backend_files


def light_files(backend: str) -> dict[str, Path]:
    """As `backend_files`, with the light engine in the place of a real one."""
    files = backend_files(backend)
    return {**files, "model.py": Path(__file__).with_name("light_engine.py")}


class Mortality:
    """Counts effects of operations, and kills."""

    def __init__(self, orders: Path) -> None:
        self._orders = orders
        self._order, self._count = "", 0

    def strikes(self, effect: str, *, half_way: bool) -> bool:
        """Count an effect's points; whether it is to end half way. Does not return if it is not to begin."""
        order = self._orders.read_text()
        if order != self._order:
            self._order, self._count = order, 0
        if not order:
            return False
        self._count += 1
        if self._count == int(order):
            self.die(f"before {effect}")
        self._count += half_way
        return half_way and self._count == int(order)

    def die(self, effect: str) -> None:
        """Say where, and end without a word to anybody."""
        self._orders.with_suffix(".told").write_text(effect)
        self._orders.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)


Half = Callable[..., Awaitable[None]]


def count_effects(mortality: Mortality) -> None:
    """Let every way to the outside be counted."""
    halves: dict[tuple[type, str], Half | None] = {
        (FileJournal, "append"): _half_a_line,
        (ModelRepository, "stage"): _half_an_entry,
        (ModelRepository, "install"): None,
        (ModelRepository, "remove"): _half_removed,
        (TritonControl, "load"): _only_asked,
        (TritonControl, "verify"): None,
        (TritonControl, "unload"): _only_asked,
        (RedisPublisher, "publish"): None,
        (RedisPublisher, "withdraw"): None,
    }
    for (kind, name), half in halves.items():
        setattr(kind, name, _counted(getattr(kind, name), half, mortality))


def _counted(method: Callable[..., Awaitable[Any]], half: Half | None, mortality: Mortality) -> Any:
    @functools.wraps(method)
    async def counted(self: Any, *arguments: Any) -> Any:
        task = asyncio.current_task()
        of_operation = method.__name__ == "append" or (task and task.get_name().startswith("operations/"))
        if of_operation and mortality.strikes(method.__name__, half_way=half is not None):
            assert half is not None
            await half(self, method, *arguments)
            mortality.die(f"during {method.__name__}")
        return await method(self, *arguments)

    return counted


async def _half_a_line(self: FileJournal, method: Any, entry: JournalEntry) -> None:
    line = journal.encode(entry)
    with self._file.open("ab") as stream:
        stream.write(line[: len(line) // 2])


async def _half_an_entry(self: ModelRepository, method: Any, entry: RepositoryEntry) -> None:
    folder = self._staging / entry.name
    folder.mkdir()
    write_file(folder / triton_config.CONFIG, b"name: ", 0o644)


async def _half_removed(self: ModelRepository, method: Any, name: str) -> None:
    (self.models / name).rename(self._staging / f"removed-{name}")


async def _only_asked(self: TritonControl, method: Any, name: str) -> None:
    """Until Triton has begun."""
    before = (await self._index()).get(name)
    going = asyncio.ensure_future(method(self, name))
    while not going.done() and (await self._index()).get(name) == before:
        await asyncio.sleep(0)


def main(orders: Path) -> None:
    triton_config.backend_files = light_files
    measured_rates()
    count_effects(Mortality(orders))
    for line in sys.stdin:
        child = os.fork()
        if not child:
            sys.stdin.close()
            os._exit(deployer.main(json.loads(line)))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
