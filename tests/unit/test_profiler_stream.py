"""Many requests over one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_profiler.app.stream import answer_all


@settings(max_examples=100, deadline=None)
@given(turns=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), max_size=40), in_flight=st.integers(1, 6))
def test_everything_is_answered_once_and_the_bound_is_kept(turns: list[tuple[int, int]], in_flight: int) -> None:
    read = answered = 0

    async def requests() -> AsyncIterator[int]:
        nonlocal read
        for number, (before, _) in enumerate(turns):
            for _ in range(before):
                await asyncio.sleep(0)
            read += 1
            assert read - answered <= in_flight
            yield number

    async def answer(number: int) -> int:
        for _ in range(turns[number][1]):
            await asyncio.sleep(0)
        return number

    async def run() -> list[int]:
        nonlocal answered
        answers = []
        async for one in answer_all(requests(), answer, in_flight):
            answers.append(one)
            await asyncio.sleep(0)
            answered += 1
        return answers

    assert sorted(asyncio.run(run())) == list(range(len(turns)))


async def test_answers_come_as_they_are_decided() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def requests() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    async def answer(number: int) -> int:
        await gates[number].wait()
        return number

    answers = answer_all(requests(), answer, 3)
    for number in (2, 0, 1):
        gates[number].set()
        assert await anext(answers) == number
    with pytest.raises(StopAsyncIteration):
        await anext(answers)


async def test_what_was_read_before_an_error_is_answered() -> None:
    async def requests() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise ValueError("malformed")

    async def answer(number: int) -> int:
        await asyncio.sleep(0)
        return number

    answers = answer_all(requests(), answer, 5)
    assert sorted([await anext(answers), await anext(answers)]) == [1, 2]
    with pytest.raises(ValueError, match="malformed"):
        await anext(answers)


async def test_closing_cancels_what_is_not_decided() -> None:
    cancelled: list[int] = []
    begun = asyncio.Semaphore(0)

    async def requests() -> AsyncIterator[int]:
        for number in range(10):
            yield number

    async def answer(number: int) -> int:
        if number == 0:
            return 0
        try:
            begun.release()
            return await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    answers = answer_all(requests(), answer, 4)
    assert await anext(answers) == 0
    for _ in range(3):
        await begun.acquire()
    await answers.aclose()
    assert sorted(cancelled) == [1, 2, 3]
