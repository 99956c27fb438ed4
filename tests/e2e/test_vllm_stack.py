"""`uellm up --engine vllm`: deployer, scheduler and the continuous engine. Needs `make vllm-env`; `make test-vllm`."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.support.local_stack import LocalUp
from tests.support.tiny_model import make_tiny_model
from uellm.client import Client, Outcome, TokenDelta
from uellm.local.engine import VllmNotInstalledError, vllm_environment
from uellm.v1 import deployer_pb2, stream_pb2
from uellm.v1.deployer_pb2_grpc import DeployerServiceStub
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED

try:
    vllm_environment()
except VllmNotInstalledError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def vllm_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalUp]:
    """The tiny model on vLLM."""
    folder = tmp_path_factory.mktemp("vllm-stack")
    weights = make_tiny_model(folder / "weights", head_size=32)
    (folder / "state").mkdir()
    flags = ("--engine", "vllm", "--weights", str(weights), "--model", "tiny", "--predictor", "prior")
    up = LocalUp(folder / "state", *flags)
    up.start()
    try:
        yield up
    finally:
        up.end()


def test_the_deployment_says_what_the_engine_really_has(vllm_stack: LocalUp) -> None:
    with grpc.insecure_channel(vllm_stack.endpoints().deployer) as channel:
        (deployment,) = DeployerServiceStub(channel).ListDeployments(deployer_pb2.ListDeploymentsRequest()).deployments
    record = deployment.record
    assert deployment.plan.spec.dtype == "bfloat16"
    assert record.engine_kind == stream_pb2.ENGINE_KIND_CONTINUOUS
    assert (record.limits.max_batch_rows, record.limits.max_concurrent_batches) == (32, 32)
    assert (record.limits.kv_page_tokens, record.limits.resumable) == (32, True)
    assert deployment.measured_kv_bytes_per_token == record.facts.kv_bytes_per_token == 512
    assert record.limits.kv_budget_bytes == 32 * 512 * 512
    assert "base measured" in record.step_time_prior.source


def test_a_later_query_joins_and_ends_before_an_earlier_one(vllm_stack: LocalUp) -> None:
    with Client(vllm_stack.endpoints(), model="tiny") as client:
        prompts = ([first, 2, 3] for first in range(100))
        endless = next(one for one in prompts if client.generate(one, max_output_tokens=450).output_tokens == 450)
        long = client.submit(endless, max_output_tokens=450)
        events = client.stream(long)
        while not isinstance(next(events), TokenDelta):
            pass
        short = client.generate("a short one", max_output_tokens=5)
        assert short.state == QUERY_STATE_COMPLETED
        rest = list(events)
        outcome = rest[-1]
        assert isinstance(outcome, Outcome)
        assert outcome.state == QUERY_STATE_COMPLETED
        assert outcome.timing.dispatch_time.ToNanoseconds() < short.timing.dispatch_time.ToNanoseconds()
        assert short.timing.finish_time.ToNanoseconds() < outcome.timing.finish_time.ToNanoseconds()
        assert client.get(long).outcome == outcome
