"""The Python client: submit queries, stream answers, read predictions.

    with Client() as client:
        print(client.generate("Why is the sky blue?", slo_seconds=30).text)

`Client` is for threads, `AsyncClient` for asyncio; both have the same methods. Errors are those of
`uellm.rpc.errors`: `RefusedError` carries the numbers of a refusal, `UnavailableError` says that nobody answers.
"""

from uellm.client.aio import AsyncClient
from uellm.client.aio_deployments import AsyncOperation
from uellm.client.endpoints import DEFAULT_MODEL, Endpoints
from uellm.client.following import Ended, Event, Transcript
from uellm.client.requests import Prompt, QueryOptions, Submitted
from uellm.client.submitting import Answered
from uellm.client.sync import Client
from uellm.client.sync_deployments import Operation
from uellm.v1.deployer_pb2 import Deployment, DeploymentProgress, DeploymentSpec, Drift
from uellm.v1.query_pb2 import Outcome, ResourceProfile
from uellm.v1.stream_pb2 import Admitted, Batched, DeadLetter, Preempted, Restarted, TokenDelta

__all__ = [
    "DEFAULT_MODEL",
    "Admitted",
    "Answered",
    "AsyncClient",
    "AsyncOperation",
    "Batched",
    "Client",
    "DeadLetter",
    "Deployment",
    "DeploymentProgress",
    "DeploymentSpec",
    "Drift",
    "Ended",
    "Endpoints",
    "Event",
    "Operation",
    "Outcome",
    "Preempted",
    "Prompt",
    "QueryOptions",
    "ResourceProfile",
    "Restarted",
    "Submitted",
    "TokenDelta",
    "Transcript",
]
