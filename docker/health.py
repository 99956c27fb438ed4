"""Exit with 0 if the gRPC server on the given port of this container says that it serves, else with 1."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS = 4

with grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}") as channel:
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
if answer.status != health_pb2.HealthCheckResponse.SERVING:
    sys.exit("not serving")
