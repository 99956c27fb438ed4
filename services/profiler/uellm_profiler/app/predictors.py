"""Which predictor is in force: installed and rolled back while queries are profiled, on every replica."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NoReturn

import structlog

from uellm.messaging.connection import raise_if_cancelled
from uellm.messaging.queries import SCHEMA_VERSION
from uellm.rpc.errors import AbortedError, FailedPreconditionError, FieldViolation, InvalidArgumentError
from uellm.v1.stream_pb2 import InstalledPredictor, PredictorInstallation
from uellm_profiler.app.ports import Installations, PredictorError, PredictorLoader
from uellm_profiler.domain.predictor import LengthPredictor, Prediction, PredictorInput, Urgency

FOLLOW_SECONDS = 1.0
"""Between two looks at what is installed."""
RETRY_SECONDS = 10.0
"""Before a predictor that could not be loaded is tried again."""
KEPT = 16
"""Installations that can be rolled back."""

log = structlog.get_logger(__name__)


class ActivePredictor:
    """The predictor in force. A call ends with the predictor that it began with."""

    def __init__(self, predictor: LengthPredictor) -> None:
        self._predictor = predictor

    def switch(self, predictor: LengthPredictor) -> None:
        """From now on calls go to another one."""
        self._predictor = predictor

    @property
    def kind(self) -> str:
        """See `LengthPredictor`."""
        return self._predictor.kind

    @property
    def version(self) -> str:
        """See `LengthPredictor`."""
        return self._predictor.version

    @property
    def description(self) -> str:
        """See `LengthPredictor`."""
        return self._predictor.description

    async def predict(self, prompts: Sequence[PredictorInput], urgency: Urgency = Urgency.INTERACTIVE) -> Prediction:
        """See `LengthPredictor`."""
        return await self._predictor.predict(prompts, urgency)


class Predictors:
    """Installs predictors and rolls them back; brings this replica to what is installed.

    What is wanted is written before it is in force here, so that a restart and the other replicas find it.
    """

    def __init__(
        self,
        active: ActivePredictor,
        loader: PredictorLoader,
        installations: Installations,
        observe: Callable[[LengthPredictor, str], None],
    ) -> None:
        """`observe` is called with the predictor in force and the problem, whenever one of them changes."""
        self._active = active
        self._loader = loader
        self._installations = installations
        self._observe = observe
        self._lock = asyncio.Lock()
        self._generation = 0
        """Of the installation that this replica has followed, or tried to."""
        self._retry_at = 0.0
        self.path = ""
        """Folder of the predictor in force; empty for the one that the process was started with."""
        self.problem = ""
        """Why the installed predictor is not in force here."""
        self.settled = False
        """Whether what is installed was looked up since the start."""
        observe(active, "")

    async def install(self, path: str, *, validate_only: bool = False) -> LengthPredictor:
        """Load an adapter folder and switch all replicas to it; returns what is in force (or was only checked).

        Raises:
            InvalidArgumentError: it can't be used.
            AbortedError: somebody else installed or rolled back meanwhile.
        """
        async with self._lock:
            try:
                loaded = await self._loader.load(path)
            except PredictorError as error:
                raise InvalidArgumentError([FieldViolation("path", str(error))]) from error
            if not validate_only:
                before = await self._installations.read()
                entry = InstalledPredictor(path=path, kind=loaded.kind, version=loaded.version)
                await self._replace(before, [*before.stack, entry][-KEPT:], loaded)
            return loaded

    async def rollback(self) -> LengthPredictor:
        """Switch all replicas to the predictor before the last installation; returns it.

        Raises:
            FailedPreconditionError: nothing is installed, or the one before can't be loaded any more.
            AbortedError: somebody else installed or rolled back meanwhile.
        """
        async with self._lock:
            before = await self._installations.read()
            if not before.stack:
                message = (
                    f"nothing is installed: {_name(self._active)}, with which the profiler was started, is in force"
                )
                raise FailedPreconditionError("predictor", message, reason="NOTHING_INSTALLED")
            stack = before.stack[:-1]
            try:
                loaded = await self._load(stack)
            except PredictorError as error:
                message = f"the predictor before the last installation can't be loaded: {error}. Install another one"
                raise FailedPreconditionError("predictor", message, reason="PREDICTOR_UNUSABLE") from error
            await self._replace(before, stack, loaded)
            return loaded

    async def follow(self) -> None:
        """Bring this replica to what is installed, if it is not. A predictor that can't be loaded is a `problem`.

        Raises what `Installations.read` raises.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            wanted = await self._installations.read()
            known = wanted.generation == self._generation
            if not known or (self.problem and loop.time() >= self._retry_at):
                self._generation = wanted.generation
                try:
                    self._switch(await self._load(wanted.stack), wanted.stack)
                except PredictorError as error:
                    self._retry_at = loop.time() + RETRY_SECONDS
                    self._report(str(error))
            self.settled = True

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow while the block runs; begins once what is installed was looked up, if it can be."""
        await self._try_to_follow()
        task = asyncio.create_task(self._follow(), name="predictor")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self) -> NoReturn:
        while True:
            raise_if_cancelled()
            await asyncio.sleep(FOLLOW_SECONDS)
            await self._try_to_follow()

    async def _try_to_follow(self) -> None:
        try:
            await self.follow()
        except Exception as error:  # noqa: BLE001  (whatever it is, the next look may succeed)
            log.warning("what is installed can't be read", error=str(error))

    async def _load(self, stack: Sequence[InstalledPredictor]) -> LengthPredictor:
        """The last of a stack; raises PredictorError, also if it is not what was installed."""
        if not stack:
            return await self._loader.load("")
        wanted = stack[-1]
        loaded = await self._loader.load(wanted.path)
        if (loaded.kind, loaded.version) != (wanted.kind, wanted.version):
            message = f"{wanted.path} holds {_name(loaded)}, but {_name(wanted)} was installed: put that back"
            raise PredictorError(f"{message}, or install the folder again")
        return loaded

    async def _replace(
        self, before: PredictorInstallation, stack: Sequence[InstalledPredictor], loaded: LengthPredictor
    ) -> None:
        generation = before.generation + 1
        after = PredictorInstallation(schema_version=SCHEMA_VERSION, generation=generation, stack=stack)
        if not await self._installations.replace(before.generation, after):
            message = "another predictor was installed or rolled back at the same time: see which, and try again"
            raise AbortedError(message)
        self._generation = generation
        self._switch(loaded, stack)

    def _switch(self, predictor: LengthPredictor, stack: Sequence[InstalledPredictor]) -> None:
        self._active.switch(predictor)
        self.path = stack[-1].path if stack else ""
        self.problem = ""
        log.info("predictor in force", predictor=_name(predictor), path=self.path)
        self._observe(predictor, "")

    def _report(self, problem: str) -> None:
        self.problem = problem
        log.error("the installed predictor can't be used", in_force=_name(self._active), problem=problem)
        self._observe(self._active, problem)


def _name(predictor: LengthPredictor | InstalledPredictor) -> str:
    return f"{predictor.kind}/{predictor.version}"
