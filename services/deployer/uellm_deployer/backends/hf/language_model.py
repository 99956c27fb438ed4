"""A causal language model of transformers with its tokenizer, loaded from a local folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..common.text import Text
from .cache import measured_bytes, new_cache
from .contract import STAGES
from .packed import pack_linear_layers
from .stages import Stage, device_map, parse_stages

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The model's config parameters (contract.py)."""

    weights: str
    stages: tuple[Stage, ...]
    dtype: str
    threads: int

    @staticmethod
    def from_parameters(parameters: Mapping[str, str]) -> LoadOptions:
        """Parse the strings of the model config; raises ValueError naming the parameter."""
        if not parameters.get("weights"):
            raise ValueError("model config parameter weights is missing: the folder of the model")
        stages = parse_stages(parameters.get(STAGES) or "")
        dtype = parameters.get("dtype") or "float32"
        if dtype not in DTYPES:
            raise ValueError(f"model config parameter dtype is {dtype!r}; known: {', '.join(DTYPES)}")
        threads = int(parameters.get("threads") or os.cpu_count() or 1)
        return LoadOptions(parameters["weights"], stages, dtype, threads)


class LanguageModel:
    """What the engine needs of a model. `encode` and `decode` may run in two threads at once."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        model.train(mode=False)
        self._text = Text(tokenizer)
        text_config = model.config.get_text_config(decoder=True)
        self.vocabulary = int(text_config.vocab_size)
        self.context_limit = int(getattr(text_config, "max_position_embeddings", 0) or 2**31 - 1)
        self.end_tokens = self._text.end_tokens(model.generation_config)
        self.device = next(model.get_input_embeddings().parameters()).device
        self.dtype = str(model.dtype).removeprefix("torch.")
        parts = {id(part): part for part in [*model.parameters(), *model.buffers()]}
        self.weight_bytes = sum(part.numel() * part.element_size() for part in parts.values())
        self.kv_bytes_per_token = self._measure_kv_bytes()

    @staticmethod
    def load(options: LoadOptions) -> LanguageModel:
        """Load safetensors weights and tokenizer from a folder; never runs code that lies there."""
        torch.set_num_threads(options.threads)
        model = AutoModelForCausalLM.from_pretrained(
            options.weights,
            device_map=device_map(options.weights, options.stages),
            dtype=DTYPES[options.dtype],
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(options.weights, local_files_only=True, trust_remote_code=False)
        pack_linear_layers(model)
        return LanguageModel(model, tokenizer)

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt, with the chat template (one user message) applied if `chat` and there is one."""
        return self._text.encode(text, chat=chat)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens without special ones."""
        return self._text.decode(tokens)

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache."""
        return new_cache(self._model.config)

    def forward(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache) -> Tensor:
        """One pass; `tokens` and `positions` are [rows, new], `mask` [rows, all so far]. Returns [rows, vocabulary].

        The logits are those of the last token of each row, on the CPU, where tokens are drawn.
        """
        output: Any = self._model(
            input_ids=tokens.to(self.device),
            attention_mask=None if mask is None else mask.to(self.device),
            position_ids=positions.to(self.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits
        return logits[:, -1].cpu()

    def _measure_kv_bytes(self) -> int:
        """Bytes a token takes in the cache, measured as the difference of a second token."""
        cache = self.new_cache()
        sizes = []
        with torch.inference_mode():
            for position in (0, 1):
                index = torch.tensor([[position]])
                self.forward(torch.zeros_like(index), None, index, cache)
                sizes.append(measured_bytes(cache))
        return sizes[1] - sizes[0]
