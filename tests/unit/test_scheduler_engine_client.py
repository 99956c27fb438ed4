"""What a query becomes on its way to an engine."""

from __future__ import annotations

from uellm_scheduler.adapters.triton import aggregates_of, batch_inputs, sampling_parameters
from uellm_scheduler.app.effects import EngineRow

from uellm.v1.query_pb2 import Query, TokenIds
from uellm.v1.stream_pb2 import QueryRecord


def record(*ids: int) -> QueryRecord:
    query = Query()
    query.generation.max_output_tokens = 7
    query.generation.top_p = 0.5
    query.generation.repetition_penalty = 1.15
    query.generation.seed = 2**52
    query.generation.stop.append("end")
    query.engine_parameters.update({"top_k": 5, "ignore_eos": True, "guided": {"depth": [1, 2.5]}, "max_tokens": 9})
    return QueryRecord(query=query, prompt_token_ids=TokenIds(ids=ids))


def test_sampling_parameters_keep_the_query_s_own_limits():
    assert sampling_parameters(record()) == {
        "top_k": 5,
        "ignore_eos": True,
        "guided": {"depth": [1, 2.5]},
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.5,
        "repetition_penalty": 1.15,
        "seed": 2**52,
        "stop": ["end"],
    }


def test_rows_are_flattened_with_their_lengths():
    rows = [EngineRow("a", record(1, 2, 3)), EngineRow("b", record(4), (8, 9))]
    sent = {tensor.name(): tensor._get_tensor() for tensor in batch_inputs(rows)}
    assert {name: list(tensor.shape) for name, tensor in sent.items()} == {
        "row_id": [2],
        "prompt_token_ids": [4],
        "prompt_lengths": [2],
        "resume_token_ids": [2],
        "resume_lengths": [2],
        "sampling_parameters": [2],
    }


def test_step_aggregates_become_a_message():
    aggregates = aggregates_of(
        {
            "prefill": [{"rows": 2, "tokens": 5, "padded_tokens": 8, "seconds": 0.5}],
            "decode": [{"rows": 2, "first_context": 4, "steps": 3, "context_tokens": 20, "seconds": 0.25}],
            "seconds": 0.75,
            "kv_bytes_per_token": 1,
        }
    )
    assert aggregates.total_seconds == 0.75
    assert (aggregates.prefill[0].padded_tokens, aggregates.decode[0].context_tokens) == (8, 20)
