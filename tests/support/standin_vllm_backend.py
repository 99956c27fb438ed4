"""A stand-in for NVIDIA's vLLM backend: its files, tensors and rules, tokens by a rule. Loaded by Triton as a backend.

Token `i` of an answer is `(sum of the prompt's ids + i) % MODULUS + FIRST`; every third response brings two tokens.
A prompt that begins with `BROKEN` is an error; one that begins with `SLOW` takes 20 ms a token.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

MODULUS, FIRST = 50, 10
BROKEN, SLOW = "?", "~"
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
SAMPLING = {"max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "ignore_eos", "stop_token_ids"}
SAMPLING |= {"detokenize", "seed", "stop", "logprobs"}


class TritonPythonModel:
    """Run by Triton's Python backend."""

    @staticmethod
    def auto_complete_config(config):
        """Adds inputs and outputs that the config does not name."""
        known = {tensor["name"] for tensor in config.as_dict()["input"]}
        for name, kind, dims in (
            ("text_input", "TYPE_STRING", [1]),
            ("image", "TYPE_STRING", [-1]),
            ("return_cumulative_logprob", "TYPE_BOOL", [1]),
        ):
            if name not in known:
                config.add_input({"name": name, "data_type": kind, "dims": dims, "optional": True})
        config.add_output({"name": "cumulative_logprob", "data_type": "TYPE_FP32", "dims": [-1]})
        config.set_model_transaction_policy({"decoupled": True})
        config.set_max_batch_size(0)
        return config

    def initialize(self, args):
        """Says in Triton's log what it was started with."""
        assert pb_utils.using_decoupled_model_transaction_policy(json.loads(args["model_config"]))
        arguments = json.loads((Path(pb_utils.get_model_dir()) / "model.json").read_text())
        self._tokenizer = Tokenizer.from_file(str(Path(arguments["model"]) / "tokenizer.json"))
        names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "VLLM_PP_LAYER_PARTITION", "HF_HUB_OFFLINE")
        started = {"kind": args["model_instance_kind"], **{name: os.environ.get(name) for name in names}}
        sys.stderr.write(f"STARTED {json.dumps(started)}\n")
        sys.stderr.flush()

    def execute(self, requests):
        """Each request in a thread of its own."""
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            threading.Thread(target=self._run, args=(inputs, request.get_response_sender())).start()

    def _run(self, inputs, sender):
        try:
            assert inputs["stream"][0], "the stand-in streams only"
            assert inputs["exclude_input_in_output"][0], "a stream never has the prompt"
            text = inputs["text_input"][0].decode()
            assert not text.startswith(BROKEN), "the stand-in was asked to fail"
            prompt = self._tokenizer.encode(text).ids
            for tokens, reason in self._drawn(text, prompt, json.loads(inputs["sampling_parameters"][0])):
                last = reason != "None"
                sender.send(pb_utils.InferenceResponse(self._outputs(prompt, tokens, reason)), FINAL if last else 0)
                if not last and sender.is_cancelled():
                    sys.stderr.write("CANCELLED\n")
                    sys.stderr.flush()
                    cancelled = pb_utils.TritonError("Request was cancelled", pb_utils.TritonError.CANCELLED)
                    sender.send(pb_utils.InferenceResponse(error=cancelled), FINAL)
                    return
        except Exception as error:  # noqa: BLE001
            nothing = pb_utils.Tensor("text_output", np.asarray(["N/A"], dtype=np.object_))
            failure = pb_utils.TritonError(f"Error generating stream: {error}")
            sender.send(pb_utils.InferenceResponse([nothing], failure), FINAL)

    def _drawn(self, text, prompt, sampling):
        """New tokens and finish reason of each response."""
        assert set(sampling) <= SAMPLING, sampling
        ends = set() if sampling["ignore_eos"] else set(sampling["stop_token_ids"])
        held, drawn = [], []
        for index in range(sampling["max_tokens"]):
            if text.startswith(SLOW):
                time.sleep(0.02)
            drawn.append((sum(prompt) + index) % MODULUS + FIRST)
            held.append(drawn[-1])
            written = self._tokenizer.decode(drawn)
            stopped = drawn[-1] in ends or any(stop in written for stop in sampling.get("stop", ()))
            reason = "stop" if stopped else "length" if index + 1 == sampling["max_tokens"] else "None"
            if reason != "None" or index % 3 != 1:
                yield held, reason
                held = []
            if stopped:
                return

    def _outputs(self, prompt, tokens, reason):
        told = [{str(token): {"logprob": -0.5, "rank": 1, "decoded_token": None}} for token in tokens]
        return [
            pb_utils.Tensor("text_output", np.asarray([self._tokenizer.decode(tokens).encode()], dtype=np.object_)),
            pb_utils.Tensor("finish_reason", np.asarray([reason], dtype=np.object_)),
            pb_utils.Tensor("logprobs", np.asarray([json.dumps(told).encode()], dtype=np.object_)),
            pb_utils.Tensor("num_input_tokens", np.asarray(len(prompt), dtype=np.uint32)),
            pb_utils.Tensor("num_output_tokens", np.asarray([len(tokens)], dtype=np.uint32)),
        ]
