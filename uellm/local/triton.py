"""The embedded Triton: the real server binary inside the nvidia-pytriton wheel."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from uellm.local.process import ManagedProcess

CONTROL_KEY = "uellm-control"  # metadata key of the restricted protocols; gRPC clients send it in lower case
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (where POSIX shared memory lies on Linux)
RESTRICTED = "model-repository,shared-memory,trace,logging"


class TritonNotInstalledError(RuntimeError):
    """The wheel with the Triton binary, or its stub for this Python, is missing."""


@dataclass(frozen=True, slots=True)
class TritonOptions:
    """How the embedded server is run."""

    repository: Path
    state: Path
    """Folder for the backend folder and the log; one per server."""
    grpc_port: int
    metrics_port: int | None = None
    control_secret: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    """What a caller of the repository, shared-memory, trace and logging RPCs has to send."""
    exit_timeout_seconds: int = 3
    first_on_path: Path = Path(sys.executable).parent
    """Folder of the interpreter whose packages the models use."""


@dataclass(frozen=True, slots=True)
class TritonCommand:
    """What to execute, and in which environment."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(repr=False)


class EmbeddedTriton:
    """A Triton server process on the loopback interface, with explicit model control."""

    def __init__(self, options: TritonOptions) -> None:
        """Nothing is started or written yet."""
        self.options = options
        self.address = f"127.0.0.1:{options.grpc_port}"
        self._process: ManagedProcess | None = None

    @property
    def control_metadata(self) -> dict[str, str]:
        """Metadata of a gRPC call that opens the restricted RPCs."""
        return {f"triton-grpc-protocol-{CONTROL_KEY}": self.options.control_secret}

    @property
    def process(self) -> ManagedProcess:
        """The process; made at the first use, with its backend folder."""
        if self._process is None:
            backends = assemble_backends(self.options.state / "backends")
            command = triton_command(self.options, backends)
            self._process = ManagedProcess(
                "Triton",
                command.argv,
                env=command.env,
                log=self.options.state / "triton.log",
                ready=self._is_live,
                grace_seconds=self.options.exit_timeout_seconds + 5,
            )
        return self._process

    def start(self) -> None:
        """Start the server."""
        self.options.repository.mkdir(parents=True, exist_ok=True)
        self.process.start()

    def wait_ready(self, timeout_seconds: float = 60.0) -> None:
        """Wait until it answers; raises ProcessError with the end of the log otherwise."""
        self.process.wait_ready(timeout_seconds)

    def stop(self) -> None:
        """End the server and its stub processes; its ports and shared memory are free afterwards."""
        self.process.stop()
        # A server that was killed leaves its regions behind, a megabyte and more for each model.
        for region in SHARED_MEMORY.glob(f"{_regions(self.options)}*"):
            region.unlink(missing_ok=True)

    def _is_live(self) -> bool:
        with grpc.insecure_channel(self.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=1).ready)
            except grpc.RpcError:
                return False


def triton_command(options: TritonOptions, backends: Path) -> TritonCommand:
    """Command line and environment of the server; `backends` comes from `assemble_backends`."""
    argv = [
        str(_installed() / "bin" / "tritonserver"),
        f"--model-repository={options.repository.absolute()}",
        f"--backend-directory={backends.absolute()}",
        "--model-control-mode=explicit",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={options.grpc_port}",
        f"--grpc-restricted-protocol={RESTRICTED}:{CONTROL_KEY}={options.control_secret}",
        "--allow-http=false",
        f"--exit-timeout-secs={options.exit_timeout_seconds}",
        # Two servers on a machine must not share the stubs' memory regions.
        f"--backend-config=python,shm-region-prefix-name={_regions(options)}",
    ]
    if options.metrics_port is None:
        argv += ["--allow-metrics=false"]
    else:
        argv += ["--metrics-address=127.0.0.1", f"--metrics-port={options.metrics_port}"]
    return TritonCommand(tuple(argv), _environment(options))


def _regions(options: TritonOptions) -> str:
    """How the names of its shared memory begin."""
    return f"uellm_{os.getpid()}_{options.grpc_port}_"


def assemble_backends(folder: Path) -> Path:
    """Make a backend folder that holds the Python backend with the stub of the running Python; returns it."""
    installed = _installed()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = installed / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise TritonNotInstalledError(f"the nvidia-pytriton wheel has no stub for Python {version}")
    target = folder / "python"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    source = installed / "backends" / "python"
    for file in (source / "libtriton_python.so", source / "triton_python_backend_utils.py", stub):
        (target / file.name).symlink_to(file)
    return folder


def _installed() -> Path:
    """Folder `tritonserver` of the wheel, found without importing it."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise TritonNotInstalledError("the package nvidia-pytriton is not installed: it holds the embedded Triton")
    return Path(spec.submodule_search_locations[0]) / "tritonserver"


def _environment(options: TritonOptions) -> dict[str, str]:
    """The environment that the stub's embedded interpreter needs.

    The libpython of the running interpreter must come first: with the system's, of another patch level, extension
    modules such as `ssl` do not load. Without UTF-8 the stub starts in ASCII.
    """
    libraries = _installed().parent.parent / "nvidia_pytriton.libs"
    own_python = sysconfig.get_config_var("LIBDIR")
    inherited = os.environ.get("LD_LIBRARY_PATH", "")
    path = os.environ.get("PATH", os.defpath)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, [own_python, str(libraries), inherited])),
        "PATH": f"{options.first_on_path}:{path}",
        "LC_ALL": "C.UTF-8",
    }
