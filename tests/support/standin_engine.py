"""A stand-in for TensorRT-LLM as Triton sees it: the tensors of its backend, tokens by a rule. Loaded by Triton.

Token `i` of an answer is `(sum of the prompt + i) % MODULUS + FIRST`, until `request_output_len` or `end_id`. It checks
what it is sent, and answers in the shapes of the real one; a request with `stop` ends the one of the same id.
A prompt that begins with `BROKEN` is an error; one that begins with `SLOW` gives a token each 20 ms.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

MODULUS, FIRST = 50, 100
BROKEN, SLOW = 7, 8
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """Loaded by Triton's Python backend."""

    def initialize(self, args):
        self._stopped: dict[str, threading.Event] = {}

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            if "stop" in tensors and tensors["stop"].item():
                if running := self._stopped.get(request.request_id()):
                    running.set()
                sender.send(flags=FINAL)
                continue
            stop = self._stopped[request.request_id()] = threading.Event()
            threading.Thread(target=self._generate, args=(tensors, sender, stop)).start()

    def _generate(self, tensors, sender, stop):
        try:
            for token in answer(tensors):
                if stop.is_set():
                    break
                ids = pb_utils.Tensor("output_ids", np.array([[[token, -1]]], dtype=np.int32))
                length = pb_utils.Tensor("sequence_length", np.array([[1]], dtype=np.int32))
                sender.send(pb_utils.InferenceResponse(output_tensors=[ids, length]))
                if token == tensors.get("end_id", -1):
                    break
            sender.send(flags=FINAL)
        except Exception as error:  # noqa: BLE001
            refusal = pb_utils.InferenceResponse(error=pb_utils.TritonError(f"Executor failed: {error}"))
            sender.send(refusal, flags=FINAL)


def answer(tensors):
    """The tokens, in their own time."""
    ids, most = tensors["input_ids"], tensors["request_output_len"].item()
    assert (ids.dtype, ids.shape) == (np.int32, (1, tensors["input_lengths"].item()))
    assert (tensors["streaming"].item(), tensors["exclude_input_in_output"].item()) == (True, True)
    assert tensors["runtime_top_k"].item() == 1 or tensors["seed"].dtype == np.uint64
    if ids[0, 0] == BROKEN:
        raise ValueError("the stand-in was asked to fail")
    for index in range(most):
        if ids[0, 0] == SLOW:
            time.sleep(0.02)
        yield (int(ids.sum()) + index) % MODULUS + FIRST
