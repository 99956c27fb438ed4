"""Between the messages of the contract and the values of the domain."""

from __future__ import annotations

from collections.abc import Iterable

from google.longrunning.operations_pb2 import Operation as OperationMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2

from uellm.v1 import deployer_pb2, query_pb2, stream_pb2
from uellm_deployer.app.reconcile import Drift
from uellm_deployer.domain.deployment import Deployment, Failure, Operation, OperationKind, State
from uellm_deployer.domain.engines import ENGINES, EngineKind
from uellm_deployer.domain.facts import ModelFacts
from uellm_deployer.domain.fleet.fleet import Fleet
from uellm_deployer.domain.placement import Placed
from uellm_deployer.domain.plan import DeploymentPlan, DeploymentSpec, Generation, Stage, StepTime
from uellm_deployer.domain.recommendation import Recommendation
from uellm_deployer.domain.topology import Topology

_DOMAIN = "uellm"


def duration(seconds: float) -> Duration:
    """Seconds as a message, to the nanosecond."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a message, to the millisecond."""
    message = Timestamp()
    message.FromMilliseconds(round(seconds * 1e3))
    return message


def topology_message(topology: Topology) -> deployer_pb2.Topology:
    """A machine."""
    message = deployer_pb2.Topology(source=topology.source, warnings=topology.warnings)
    for device in topology.devices:
        message.devices.add(
            id=device.id,
            kind=device.kind.value,
            model=device.model,
            memory_bytes=device.memory_bytes,
            free_memory_bytes=device.free_memory_bytes,
            memory_bandwidth_bytes_per_second=device.memory_bandwidth,
            flops_per_second=device.flops,
            numa_node=device.numa_node,
            pci_bus_id=device.pci_bus_id,
            cpu_affinity=device.cpu_affinity,
            parent_id=device.parent_id,
        )
    for link in topology.links:
        message.links.add(
            device_a=link.device_a,
            device_b=link.device_b,
            link_class=link.link_class,
            bandwidth_bytes_per_second=link.bandwidth,
            latency=duration(link.latency_seconds),
            peer_access=link.peer_access,
            assumed=link.assumed,
        )
    return message


def planned_message(placed: Placed, what_if: Iterable[str]) -> deployer_pb2.PlanDeploymentResponse:
    """The best plan, what lost, and what other machines would give."""
    return deployer_pb2.PlanDeploymentResponse(
        plan=plan_message(placed.plan),
        alternatives=[
            deployer_pb2.Alternative(plan=plan_message(plan), reason=reason) for plan, reason in placed.alternatives
        ],
        what_if=what_if,
    )


def recommendation_message(recommendation: Recommendation) -> deployer_pb2.Alternative:
    """What would be better now, and why."""
    return deployer_pb2.Alternative(plan=plan_message(recommendation.plan), reason=recommendation.reason)


def fleet_message(fleet: Fleet) -> deployer_pb2.PlanFleetResponse:
    """A plan for each copy of each member."""
    return deployer_pb2.PlanFleetResponse(
        plans=map(plan_message, fleet.plans),
        explanation=fleet.explanation,
        tokens_per_second=fleet.tokens_per_second,
        tokens_per_second_bound=fleet.tokens_per_second_bound,
    )


def plan_message(plan: DeploymentPlan) -> deployer_pb2.DeploymentPlan:
    """A plan."""
    return deployer_pb2.DeploymentPlan(
        plan_hash=plan.plan_hash,
        spec=_spec_message(plan.spec),
        stages=[_stage_message(stage) for stage in plan.stages],
        facts=_facts_message(plan.facts),
        step_time=_step_time_message(plan.step_time),
        first_token_time=duration(plan.first_token_seconds),
        output_token_time=duration(plan.output_token_seconds),
        kv_budget_bytes=plan.kv_budget_bytes,
        lower_bound_seconds=plan.lower_bound_seconds,
        objective_seconds=plan.objective_seconds,
        explanation=plan.explanation,
    )


def record_message(deployment: Deployment, triton_endpoint: str) -> stream_pb2.DeploymentRecord:
    """What is published of a deployment; the publisher sets the time."""
    plan, spec = deployment.plan, deployment.plan.spec
    engine = ENGINES[spec.backend]
    facts = _facts_message(plan.facts)
    measured = deployment.measured_kv_bytes_per_token
    if measured and measured != facts.kv_bytes_per_token:  # the engine's own figure; of its layers nothing is known
        facts.kv_bytes_per_token = measured
        facts.ClearField("kv_cache_layers")
    return stream_pb2.DeploymentRecord(
        schema_version=1,
        name=deployment.name,
        model=spec.model,
        triton_model=plan.triton_model,
        triton_endpoint=triton_endpoint,
        engine_kind=f"ENGINE_KIND_{engine.kind}",
        state=f"DEPLOYMENT_STATE_{deployment.state}",
        facts=facts,
        tokenizer_path=spec.weights_path,
        limits=stream_pb2.EngineLimits(
            context_tokens=spec.context_tokens,
            max_output_tokens=spec.max_output_tokens,
            max_batch_rows=spec.max_batch_rows,
            # A static engine runs one after the other; on a continuous one each may be a single row.
            max_concurrent_batches=spec.max_batch_rows if engine.kind is EngineKind.CONTINUOUS else 1,
            kv_budget_bytes=deployment.measured_kv_budget_bytes or plan.kv_budget_bytes,
            resumable=True,
            kv_page_tokens=engine.page_tokens,
        ),
        step_time_prior=_step_time_message(plan.step_time.calibrated(deployment.measured_step_seconds)),
        traffic_share=deployment.traffic_share,
        default_generation=_generation_message(spec.default_generation),
        plan_hash=plan.plan_hash,
        queue_shard=spec.queue_shard,
    )


def deployment_message(deployment: Deployment, triton_endpoint: str) -> deployer_pb2.Deployment:
    """A deployment; one that is not or no longer published has no record."""
    message = deployer_pb2.Deployment(
        name=deployment.name,
        state=f"DEPLOYMENT_STATE_{deployment.state}",
        plan=plan_message(deployment.plan),
        create_time=timestamp(deployment.create_time),
        etag=deployment.etag,
        failure=deployment.failure,
        measured_kv_bytes_per_token=deployment.measured_kv_bytes_per_token,
    )
    if deployment.state in (State.READY, State.DRAINING):
        message.record.CopyFrom(record_message(deployment, triton_endpoint))
    return message


def drift_message(drift: Drift) -> deployer_pb2.Drift:
    """A difference."""
    return deployer_pb2.Drift(subject=drift.subject, difference=drift.difference, repair=drift.repair)


def progress_message(operation: Operation) -> deployer_pb2.DeploymentProgress:
    """How far an operation is."""
    return deployer_pb2.DeploymentProgress(
        deployment=operation.deployment,
        stage=f"DEPLOYMENT_STAGE_{operation.stage}",
        percent=operation.percent,
        message=operation.message,
        start_time=timestamp(operation.start_time),
    )


def operation_message(operation: Operation, deployment: Deployment | None, triton_endpoint: str) -> OperationMessage:
    """An operation; `deployment` is what it is about, None if that is gone."""
    message = OperationMessage(name=operation.name, done=operation.done)
    message.metadata.Pack(progress_message(operation))
    if operation.failure is not None:
        message.error.CopyFrom(_failure_message(operation.failure))
    elif operation.done and operation.kind is OperationKind.CREATE and deployment is not None:
        message.response.Pack(deployment_message(deployment, triton_endpoint))
    elif operation.done:
        message.response.Pack(Empty())
    return message


def validated_message(deployment: Deployment, triton_endpoint: str) -> OperationMessage:
    """The answer to a request that was only to be checked: done, without a name, for there is no operation."""
    message = OperationMessage(done=True)
    planned = deployment_message(deployment, triton_endpoint)
    planned.ClearField("state")
    planned.ClearField("etag")
    planned.ClearField("create_time")
    message.response.Pack(planned)
    return message


def _failure_message(failure: Failure) -> status_pb2.Status:
    message = status_pb2.Status(code=code_pb2.Code.Value(failure.code), message=failure.message)
    message.details.add().Pack(error_details_pb2.ErrorInfo(reason=failure.reason, domain=_DOMAIN))
    return message


def _spec_message(spec: DeploymentSpec) -> deployer_pb2.DeploymentSpec:
    message = deployer_pb2.DeploymentSpec(
        model=spec.model,
        weights_path=spec.weights_path,
        backend=spec.backend,
        objective=f"PLACEMENT_OBJECTIVE_{spec.objective}",
        max_batch_rows=spec.max_batch_rows,
        context_tokens=spec.context_tokens,
        max_output_tokens=spec.max_output_tokens,
        default_generation=_generation_message(spec.default_generation),
        dtype=spec.dtype,
        device_ids=spec.device_ids,
        queue_shard=spec.queue_shard,
        stage_layers=spec.stage_layers,
    )
    if spec.first_token_slo_seconds:
        message.first_token_slo.CopyFrom(duration(spec.first_token_slo_seconds))
    if spec.output_token_slo_seconds:
        message.output_token_slo.CopyFrom(duration(spec.output_token_slo_seconds))
    return message


def _generation_message(generation: Generation) -> query_pb2.GenerationParameters:
    return query_pb2.GenerationParameters(
        max_output_tokens=generation.max_output_tokens,
        temperature=generation.temperature,
        top_p=generation.top_p,
        repetition_penalty=generation.repetition_penalty,
        seed=generation.seed,
        stop=generation.stop,
    )


def _stage_message(stage: Stage) -> deployer_pb2.Stage:
    return deployer_pb2.Stage(
        device_ids=stage.device_ids,
        first_layer=stage.first_layer,
        layer_count=stage.layer_count,
        embedding=stage.embedding,
        head=stage.head,
        weight_bytes=stage.weight_bytes,
        kv_bytes=stage.kv_bytes,
        reserve_bytes=stage.reserve_bytes,
    )


def _facts_message(facts: ModelFacts) -> stream_pb2.ModelFacts:
    return stream_pb2.ModelFacts(
        architecture=facts.architecture,
        layers=facts.layers,
        hidden_size=facts.hidden_size,
        attention_heads=facts.attention_heads,
        kv_heads=facts.kv_heads,
        head_size=facts.head_size,
        vocabulary_size=facts.vocabulary_size,
        context_limit_tokens=facts.context_limit_tokens,
        weight_bytes=facts.weight_bytes,
        kv_bytes_per_token=facts.kv_bytes_per_token,
        parameter_count=facts.parameter_count,
        kv_cache_layers=facts.kv_cache.to_proto(),
    )


def _step_time_message(times: StepTime) -> stream_pb2.StepTimePrior:
    return stream_pb2.StepTimePrior(
        base_seconds=times.base_seconds,
        per_row_seconds=times.per_row_seconds,
        per_context_token_seconds=times.per_context_token_seconds,
        prefill_per_token_seconds=times.prefill_per_token_seconds,
        startup_seconds=times.startup_seconds,
        source=times.source,
    )
