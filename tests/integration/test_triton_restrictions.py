"""Triton's restricted protocols: who reaches them can run code in the server."""

from __future__ import annotations

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from uellm.local.triton import CONTROL_KEY

LIMIT_SECONDS = 60.0


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("RepositoryIndex", "RepositoryIndexRequest"),
        ("RepositoryModelLoad", "RepositoryModelLoadRequest"),
        ("RepositoryModelUnload", "RepositoryModelUnloadRequest"),
        ("SystemSharedMemoryStatus", "SystemSharedMemoryStatusRequest"),
        ("SystemSharedMemoryRegister", "SystemSharedMemoryRegisterRequest"),
        ("SystemSharedMemoryUnregister", "SystemSharedMemoryUnregisterRequest"),
        ("CudaSharedMemoryStatus", "CudaSharedMemoryStatusRequest"),
        ("CudaSharedMemoryRegister", "CudaSharedMemoryRegisterRequest"),
        ("CudaSharedMemoryUnregister", "CudaSharedMemoryUnregisterRequest"),
        ("TraceSetting", "TraceSettingRequest"),
        ("LogSettings", "LogSettingsRequest"),
    ],
)
def test_what_reaches_into_the_server_is_refused_without_the_secret(tiny_triton, method, request_type):
    request = getattr(service_pb2, request_type)()
    with grpc.insecure_channel(tiny_triton.address) as channel:
        call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
        for metadata in ((), ((f"triton-grpc-protocol-{CONTROL_KEY}", "wrong"),)):
            with pytest.raises(grpc.RpcError) as caught:
                call(request, metadata=metadata, timeout=LIMIT_SECONDS)
            assert "This protocol is restricted" in caught.value.details()
        opened = call.future(request, metadata=tuple(tiny_triton.control_metadata.items()), timeout=LIMIT_SECONDS)
        assert "restricted" not in (opened.details() or ""), "the secret opens it"
