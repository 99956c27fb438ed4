"""Where and how a gRPC server listens."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FilePath, model_validator

_MAX_PORT = 65_535


def split_address(address: str) -> tuple[str, int]:
    """Takes `host:port` apart; an IPv6 host stands in square brackets.

    Raises:
        ValueError: it is no such address.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) <= _MAX_PORT):
        raise ValueError("must be host:port with a port from 0 to 65535")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("must have an IPv6 host in square brackets")
    return host.strip("[]"), int(port)


def _check_address(address: str) -> str:
    if address:
        split_address(address)
    return address


Address = Annotated[str, AfterValidator(_check_address)]
"""`host:port`."""


class ServerConfig(BaseModel):
    """Everything that a server needs to know besides its servicers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    listen: Address = Field(default="127.0.0.1:50051", min_length=1, examples=["127.0.0.1:50051"])
    """Address of the gRPC server, host:port. Port 0 takes a free one."""
    metrics_listen: Address = Field(default="", examples=["127.0.0.1:9090"])
    """Address of the Prometheus endpoint, host:port. Empty: none."""
    tls_cert: FilePath | None = Field(default=None, examples=["server.pem"])
    """Certificate chain of the server, PEM. Not set: plain text."""
    tls_key: FilePath | None = Field(default=None, examples=["server.key"])
    """Private key of the certificate, PEM."""
    tls_client_ca: FilePath | None = Field(default=None, examples=["clients-ca.pem"])
    """Certificates that sign clients' certificates, PEM. Set: clients must present one (mutual TLS)."""
    max_message_bytes: int = Field(default=4_194_304, ge=1_024, le=268_435_456, examples=[4_194_304])
    """Largest request, in bytes."""
    max_concurrent_rpcs: int = Field(default=1_024, ge=1, examples=[1_024])
    """Calls served at once, streams included; more get RESOURCE_EXHAUSTED."""
    shutdown_grace_seconds: float = Field(default=10.0, ge=0, le=3_600, examples=[10])
    """How long calls in flight may take after SIGTERM, in seconds."""
    reflection: bool = Field(default=True, examples=["true"])
    """Whether the server describes its services to tools such as grpcurl."""

    @model_validator(mode="after")
    def _check_tls(self) -> ServerConfig:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError(
                "--tls-cert (UELLM_TLS_CERT) and --tls-key (UELLM_TLS_KEY) must be set together; "
                "for example --tls-cert server.pem --tls-key server.key"
            )
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError(
                "--tls-client-ca (UELLM_TLS_CLIENT_CA) needs a server certificate; "
                "for example --tls-cert server.pem --tls-key server.key"
            )
        return self
