"""The served models' own tokenizers, without transformers: `tokenizer.json` and the chat template beside it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog
from tokenizers import Tokenizer

from uellm.rpc.errors import UnavailableError
from uellm.v1.query_pb2 import Query
from uellm_profiler.adapters.chat_template import ChatTemplate, read_chat_template
from uellm_profiler.app.ports import EncodedPrompt, PromptError

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_CACHED = 16
_LONG_BYTES = 16_384

log = structlog.get_logger(__name__)


class ServedTokenizer:
    """The tokenizer of one model. Gives the token ids that transformers gives for the same folder."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    @classmethod
    def load(cls, folder: Path) -> ServedTokenizer:
        """Read a folder as transformers writes it.

        Raises:
            UnavailableError: it can't be read.
        """
        try:
            # The library's errors have no class of their own.
            tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text("utf-8"))
            config = _read_json(folder / "tokenizer_config.json")
            special_tokens = _special_tokens(_read_json(folder / "special_tokens_map.json") | config)
            template = read_chat_template(folder, config, special_tokens)
        except Exception as error:
            log.warning("tokenizer can't be read", folder=str(folder), error=str(error))
            message = "the model's tokenizer can't be read; see the profiler's log, and redeploy the model"
            raise UnavailableError(message, reason="TOKENIZER_UNAVAILABLE") from error
        # A file may ask for cutting or padding, which is not for serving.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, template)

    def encode(self, query: Query) -> EncodedPrompt:
        """Encode a query's input; raises PromptError if the model can't take it."""
        match query.WhichOneof("input"):
            case "prompt_token_ids":
                ids = list(query.prompt_token_ids.ids)
                return EncodedPrompt(self._tokenizer.decode(ids), ids)
            case "chat":
                if self._template is None:
                    raise PromptError("chat", "must be a prompt instead: the model has no chat template")
                messages = [{"role": message.role, "content": message.content} for message in query.chat.messages]
                text = self._template.render(messages, "chat")
                return EncodedPrompt(_conversation(messages), self._encode(text, add_special_tokens=False))
            case _ if self._template is None or query.raw_prompt:
                return EncodedPrompt(query.prompt, self._encode(query.prompt, add_special_tokens=True))
            case _:
                text = self._template.render([{"role": "user", "content": query.prompt}], "prompt")
                return EncodedPrompt(query.prompt, self._encode(text, add_special_tokens=False))

    def _encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        # The call for batches gives up the interpreter's lock, that for one text does not.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: Sequence[int] = encoding.ids
        return ids


class TokenizerPool:
    """Encodes in threads, so that the event loop goes on; long prompts have threads of their own.

    Tokenizers are loaded at their first use and kept until their files change.
    """

    def __init__(self, threads: int) -> None:
        """`threads` each for short and for long prompts."""
        self._short = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._long = ThreadPoolExecutor(threads, thread_name_prefix="encode-long")
        self._cache = _Cache()

    async def encode(self, folder: str, query: Query) -> EncodedPrompt:
        """See `uellm_profiler.app.ports.Tokenizer`."""
        executor: Executor = self._long if query.ByteSize() > _LONG_BYTES else self._short
        return await asyncio.get_running_loop().run_in_executor(executor, self._encode, folder, query)

    def close(self) -> None:
        """End the threads."""
        self._short.shutdown(cancel_futures=True)
        self._long.shutdown(cancel_futures=True)

    def _encode(self, folder: str, query: Query) -> EncodedPrompt:
        return self._cache.get(folder).encode(query)


class _Cache:
    """The tokenizers used last, by folder and the times of its files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._kept: OrderedDict[str, tuple[Sequence[int], ServedTokenizer]] = OrderedDict()

    def get(self, folder: str) -> ServedTokenizer:
        """The tokenizer in a folder; raises UnavailableError."""
        times = _modified(Path(folder))
        with self._lock:
            known = self._find(folder, times)
            loading = self._loading.setdefault(folder, threading.Lock())
        if known is not None:
            return known
        with loading:  # one thread loads, the others of this folder wait for it
            with self._lock:
                known = self._find(folder, times)
            if known is None:
                known = ServedTokenizer.load(Path(folder))
                with self._lock:
                    self._kept[folder] = (times, known)
                    if len(self._kept) > _CACHED:
                        self._loading.pop(self._kept.popitem(last=False)[0], None)
        return known

    def _find(self, folder: str, times: Sequence[int]) -> ServedTokenizer | None:
        kept_times, kept = self._kept.get(folder, ((), None))
        if kept is None or kept_times != times:
            return None
        self._kept.move_to_end(folder)
        return kept


def _conversation(messages: Sequence[Mapping[str, str]]) -> str:
    """The messages with their roles; a single one of the user is what a prompt would be."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _modified(folder: Path) -> tuple[int, ...]:
    """Modification times in ns; 0 for a file that is not there."""
    times = []
    for name in _FILES:
        try:
            times.append((folder / name).stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return tuple(times)


def _read_json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text("utf-8"))) if file.exists() else {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name; a file holds them as text or as an object with `content`."""
    found = {name: config[name] for name in _SPECIAL_TOKENS if config.get(name)}
    return {name: token["content"] if isinstance(token, dict) else str(token) for name, token in found.items()}
