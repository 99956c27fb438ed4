"""The served tokenizer gives what transformers gives, and fails with a reason."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from uellm_profiler.adapters.tokenizer import ServedTokenizer, TokenizerPool
from uellm_profiler.app.ports import EncodedPrompt, PromptError

from tests.support.tiny_model import make_tokenizer
from uellm.rpc.errors import UnavailableError
from uellm.v1.query_pb2 import ChatMessage, ChatMessages, Query, TokenIds

STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "    {% if loop.index > 3 %}{% break %}{% endif %}\n"
    "[{{ message.role }}] {{ message.content | trim }}{% generation %}{{ eos_token }}{% endgeneration %}\n"
    "{% endfor %}"
    "{{ {'b': 'é<', 'a': 1} | tojson }}{% if tools is not none %}tools{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXTS = [
    "What is the capital of France?",
    "  leading, trailing  ",
    "ümläut, 漢字, \U0001f600 and\ttabs\r\nlines\n\n",
    "special <|im_end|> inside <|im_start|>system",
    "x" * 3_000,
]
CHAT = [("user", "Hello"), ("assistant", "Hi! <b>"), ("user", "And now?\n"), ("assistant", "?"), ("user", "last")]


@pytest.fixture(params=["chatml", "strict"])
def reference(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    if request.param == "strict":
        tokenizer.chat_template = STRICT
        tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    return tokenizer


@pytest.fixture
def pool() -> Iterator[TokenizerPool]:
    pool = TokenizerPool(threads=1)
    yield pool
    pool.close()


def conversation(messages: list[tuple[str, str]]) -> Query:
    return Query(chat=ChatMessages(messages=[ChatMessage(role=role, content=text) for role, text in messages]))


def expected(tokenizer: PreTrainedTokenizerFast, messages: list[tuple[str, str]]) -> list[int]:
    chat = [{"role": role, "content": text} for role, text in messages]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    return list(ids)


def read_back(encoded: EncodedPrompt) -> str:
    return str(make_tokenizer().decode(list(encoded.token_ids)))


def test_prompts_and_conversations_equal_transformers(reference: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    served = ServedTokenizer.load(tmp_path)
    for text in TEXTS:
        assert list(served.encode(Query(prompt=text)).token_ids) == expected(reference, [("user", text)])
        raw = served.encode(Query(prompt=text, raw_prompt=True))
        assert list(raw.token_ids) == reference(text)["input_ids"]
    assert list(served.encode(conversation(CHAT)).token_ids) == expected(reference, CHAT)


def test_the_content_is_what_the_user_wrote(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    served = ServedTokenizer.load(tmp_path)
    assert served.encode(Query(prompt=" hi\n")).content == " hi\n"
    assert served.encode(Query(prompt="hi", raw_prompt=True)).content == "hi"
    assert served.encode(conversation([("user", "hi")])).content == "hi"
    talk = [("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", "why?")]
    assert served.encode(conversation(talk)).content == "system: be brief\n\nuser: hi\n\nassistant: hello\n\nuser: why?"
    ids = served.encode(Query(prompt="hi")).token_ids
    assert served.encode(Query(prompt_token_ids=TokenIds(ids=ids))).content == "user\nhi\nassistant\n"


def test_token_ids_are_used_as_they_are(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    served = ServedTokenizer.load(tmp_path)
    ids = list(served.encode(Query(prompt="hello", raw_prompt=True)).token_ids)
    encoded = served.encode(Query(prompt_token_ids=TokenIds(ids=ids)))
    assert (encoded.content, list(encoded.token_ids)) == ("hello", ids)


def test_template_of_an_older_config_and_token_objects(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "tool_use", "template": "wrong"},
        {"name": "default", "template": "{{ eos_token }}{{ messages[0].content }}"},
    ]
    config["eos_token"] = {"content": "<|im_end|>", "lstrip": False, "__type": "AddedToken"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_back(ServedTokenizer.load(tmp_path).encode(Query(prompt="hi"))) == "<|im_end|>hi"


def test_settings_for_training_do_not_cut_prompts(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=16)
    tokenizer.save_pretrained(tmp_path)
    assert len(ServedTokenizer.load(tmp_path).encode(Query(prompt="x" * 9, raw_prompt=True)).token_ids) == 9


def test_a_model_without_template_takes_prompts_but_no_conversation(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    served = ServedTokenizer.load(tmp_path)
    assert read_back(served.encode(Query(prompt="hi"))) == "hi"
    with pytest.raises(PromptError, match="no chat template") as error:
        served.encode(conversation(CHAT))
    assert error.value.field == "chat"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (STRICT, "System role not supported"),
        ("{{ messages[0].content.__class__.__mro__ }}", "refuses it"),
        ("{{ raise_exception.__globals__['json'] }}", "refuses it"),
        ("{{ messages.append(1) }}", "refuses it"),
        ("{{ messages[9].content }}", "refuses it"),
        ("{{ 1 + 'a' }}", "refuses it"),
    ],
    ids=["raises", "class", "globals", "mutation", "missing", "type"],
)
def test_a_template_that_fails_is_a_violation(template: str, message: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(PromptError, match=message) as error:
        ServedTokenizer.load(tmp_path).encode(conversation([("system", "be brief"), ("user", "hi")]))
    assert error.value.field == "chat"


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"], ids=["missing", "torn", "empty", "list"])
def test_a_tokenizer_that_can_not_be_read_is_unavailable(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UnavailableError) as error:
        ServedTokenizer.load(tmp_path)
    assert error.value.reason == "TOKENIZER_UNAVAILABLE"
    assert str(tmp_path) not in error.value.message


async def test_loaded_once_until_the_files_change(
    pool: TokenizerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    load = ServedTokenizer.load

    def counting(folder: Path) -> ServedTokenizer:
        loads.append(folder)
        return load(folder)

    monkeypatch.setattr(ServedTokenizer, "load", counting)
    make_tokenizer().save_pretrained(tmp_path)
    queries = [Query(prompt="hi"), Query(prompt="x" * 20_000)] * 4
    await asyncio.gather(*(pool.encode(str(tmp_path), query) for query in queries))
    assert len(loads) == 1
    template = tmp_path / "chat_template.jinja"
    template.write_text("new {{ messages[0].content }}")
    os.utime(template, ns=(1, 1))
    assert read_back(await pool.encode(str(tmp_path), Query(prompt="hi"))) == "new hi"
    assert len(loads) == 2


async def test_a_long_prompt_does_not_hold_up_short_ones(
    pool: TokenizerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    encode = ServedTokenizer.encode

    def slow(self: ServedTokenizer, query: Query) -> EncodedPrompt:
        if len(query.prompt) > 1_000:
            assert release.wait(10)
        return encode(self, query)

    monkeypatch.setattr(ServedTokenizer, "encode", slow)
    make_tokenizer().save_pretrained(tmp_path)
    long = [asyncio.create_task(pool.encode(str(tmp_path), Query(prompt="x" * 20_000))) for _ in range(4)]
    try:
        await asyncio.wait_for(pool.encode(str(tmp_path), Query(prompt="hi")), 5)
        assert not any(task.done() for task in long)
    finally:
        release.set()
    assert all(len(one.token_ids) > 20_000 for one in await asyncio.gather(*long))
