"""Incremental detokenization."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from uellm_deployer.backends.common.detokenize import REPLACEMENT, Detokenizer

from tests.support.tiny_model import make_tokenizer

TOKENIZER = make_tokenizer()
TEXTS = st.text(alphabet=st.sampled_from("ab \n.é日本語😀👩‍👧"), max_size=30)
STOPS = st.lists(st.text(alphabet=st.sampled_from("ab é日"), min_size=1, max_size=4), max_size=3)


def decode(tokens: Sequence[int]) -> str:
    return str(TOKENIZER.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def encode(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def pieces(tokens: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    """The text taken after each token, then after the end; and whether a stop string ended it."""
    detokenizer = Detokenizer(decode, stop)
    taken = []
    for token in tokens:
        detokenizer.push(token)
        taken.append(detokenizer.take())
        if detokenizer.stopped:
            return taken, True
    detokenizer.finish()
    return [*taken, detokenizer.take()], detokenizer.stopped


@given(TEXTS)
def test_pieces_are_whole_characters_and_add_up(text: str) -> None:
    taken, _ = pieces(encode(text))
    assert "".join(taken) == text
    assert not any(REPLACEMENT in piece for piece in taken)


@given(st.lists(st.integers(0, 257), max_size=40))
def test_pieces_of_any_tokens_add_up_to_their_decoding(tokens: list[int]) -> None:
    taken, _ = pieces(tokens)
    assert "".join(taken) == decode(tokens)


def test_a_character_of_four_tokens_comes_with_its_last() -> None:
    assert pieces(encode("a😀b"))[0] == ["a", "", "", "", "😀", "b", ""]


@given(TEXTS, STOPS)
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    taken, stopped = pieces(encode(text), stop)
    # The row ends at the first character with which the text holds a stop string.
    ends = (end for end in range(1, len(text) + 1) if any(text[:end].endswith(s) for s in stop))
    end = next(ends, None)
    expected = text if end is None else text[: min(at for s in stop if (at := text[:end].find(s)) >= 0)]
    assert ("".join(taken), stopped) == (expected, end is not None)


def test_what_may_become_a_stop_string_is_held_back() -> None:
    taken, stopped = pieces(encode("one\nUsex"), ["\nUser:"])
    assert taken == ["o", "n", "e", "", "", "", "", "\nUsex", ""]
    assert not stopped


@given(TEXTS, STOPS, st.integers(0, 60))
def test_text_given_out_depends_on_the_tokens_alone(text: str, stop: list[str], cut: int) -> None:
    tokens = encode(text)[:cut]
    often, _ = pieces(tokens, stop)
    once = Detokenizer(decode, stop)
    for token in tokens:
        if not once.stopped:
            once.push(token)
    before_the_end = often if once.stopped else often[:-1]
    assert once.take() == "".join(before_the_end)
