"""Generates the stubs under `uellm/v1/`, checks that they match `protos/`, and lints the contracts.

Imports (google.longrunning, google.protobuf) are read from the installed packages, so nothing is downloaded.
"""

from __future__ import annotations

import filecmp
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import google.longrunning
import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
STUBS = ROOT / "uellm" / "v1"
SITE = Path(google.longrunning.__path__[0]).parents[1]
BUF = Path(sys.executable).parent / "buf"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


def main(action: str, revision: str = "HEAD") -> int:
    """Run `generate`, `check`, `lint` or `breaking [REVISION]`; the exit status is 0 if all is well."""
    actions = {
        "generate": lambda: generate(STUBS),
        "check": check,
        "lint": lint,
        "breaking": lambda: breaking(revision),
    }
    return actions[action]()


def generate(into: Path) -> int:
    """Write messages, stubs and `.pyi` of every contract into the folder."""
    with tempfile.TemporaryDirectory() as scratch:
        status = _protoc(
            ROOT / "protos", f"--python_out={scratch}", f"--pyi_out={scratch}", f"--grpc_python_out={scratch}"
        )
        for made in sorted((Path(scratch) / "uellm" / "v1").glob("*.py*")):
            (into / made.name).write_bytes(made.read_bytes())
    return status


def check() -> int:
    """Compare the committed stubs with freshly generated ones."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        made = {path.name for path in Path(scratch).iterdir()}
        here = {path.name for path in STUBS.glob("*_pb2*")}
        _, differ, missing = filecmp.cmpfiles(scratch, STUBS, sorted(made), shallow=False)
    wrong = sorted({*differ, *missing, *(here - made)})
    if wrong:
        print(f"stubs do not match protos/: {', '.join(wrong)}. Run `make protos`.", file=sys.stderr)
    return 1 if wrong else 0


def lint() -> int:
    """Run `buf lint` over the contracts."""
    with tempfile.TemporaryDirectory() as scratch:
        return _buf("lint", _image(ROOT / "protos", Path(scratch) / "now.binpb"))


def breaking(revision: str) -> int:
    """Run `buf breaking` against the contracts of a git revision; nothing to compare with is no failure."""
    archive = subprocess.run(["git", "archive", revision, "protos"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        print(f"no contracts in {revision}: nothing to compare with")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
            tar.extractall(scratch, filter="data")
        before = _image(Path(scratch) / "protos", Path(scratch) / "before.binpb")
        return _buf("breaking", _image(ROOT / "protos", Path(scratch) / "now.binpb"), "--against", str(before))


def _image(protos: Path, image: Path) -> Path:
    _protoc(protos, "--include_imports", "--include_source_info", f"--descriptor_set_out={image}")
    return image


def _protoc(protos: Path, *arguments: str) -> int:
    sources = [str(path) for path in sorted(protos.glob("uellm/v1/*.proto"))]
    with tempfile.TemporaryDirectory() as renamed:
        # The package ships this file under another name than the one its own descriptor is registered by.
        operations = Path(renamed) / "google" / "longrunning" / "operations.proto"
        operations.parent.mkdir(parents=True)
        operations.write_bytes((SITE / "google" / "longrunning" / "operations_proto.proto").read_bytes())
        includes = [f"-I{folder}" for folder in (protos, renamed, SITE, WELL_KNOWN)]
        status: int = protoc.main(["protoc", *includes, *arguments, *sources])
    return status


def _buf(command: str, image: Path, *arguments: str) -> int:
    return subprocess.run(
        [str(BUF), command, str(image), "--config", str(ROOT / "buf.yaml"), *arguments], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
