"""Converts the GGUF of the default model to a safetensors folder; run as a child process, since it needs torch.

    python -m uellm.local.convert GGUF FOLDER

Writes one line per step to standard output: `done total text`.
"""

from __future__ import annotations

import sys
from pathlib import Path

STEPS = ("loading transformers", "reading the tokenizer", "unpacking the weights", "writing the weights")


def convert(gguf: Path, folder: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.

    Weights become float32, which holds the unpacked values exactly (bfloat16 does not).
    """
    _report(0)
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    _report(1)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    # transformers overlooks the GGUF's `tokenizer.ggml.pre = smollm`: every digit is a word of its own.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    _report(2)
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    config = packed.config
    del config.quantization_config, config._model_name_or_path  # noqa: SLF001  (they describe the GGUF)
    tokenizer.model_max_length = config.max_position_embeddings
    # A model read from a GGUF refuses to be saved, so its weights move into a fresh one.
    model = LlamaForCausalLM(config)  # type: ignore[arg-type]  # it is a LlamaConfig
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    _report(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    _report(4)


def _report(done: int) -> None:
    text = STEPS[done] if done < len(STEPS) else "converted"
    sys.stdout.write(f"{done} {len(STEPS)} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
