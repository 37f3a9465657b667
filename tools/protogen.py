"""Generate the protobuf stubs and lint the contracts; `--check` says whether the committed stubs are current.

Each run compares the contracts with those of the last release; `--release` declares that these now are.

The rules of protovalidate come as a descriptor from an installed package, so that
nothing of somebody else's is copied into this repository and nothing is fetched.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import grpc_tools
from buf.validate import validate_pb2
from google.protobuf import descriptor, descriptor_pb2

from tools import protocompat

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


def imported_descriptors() -> bytes:
    """Return validate.proto and what it imports as a serialized FileDescriptorSet."""
    files = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: descriptor.FileDescriptor) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        file.CopyToProto(files.file.add())

    add(validate_pb2.DESCRIPTOR)
    return files.SerializeToString()


def run(*command: str) -> None:
    """Run a command from proto/ and stop with its status when it fails."""
    done = subprocess.run(command, cwd=PROTO, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def generate(out: Path, scratch: Path) -> descriptor_pb2.FileDescriptorSet:
    """Write stubs for every .proto under `out`, lint the result with buf's STANDARD rules, and return it."""
    imports, image = scratch / "imports.binpb", scratch / "image.binpb"
    imports.write_bytes(imported_descriptors())
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    binaries = Path(sys.executable).parent
    run(
        sys.executable, "-m", "grpc_tools.protoc", "-I.", f"-I{WELL_KNOWN}",
        f"--descriptor_set_in={imports}", "--include_imports", "--include_source_info",
        f"--descriptor_set_out={image}", f"--python_out={out}", f"--grpc_python_out={out}",
        f"--plugin=protoc-gen-mypy={binaries / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={binaries / 'protoc-gen-mypy_grpc'}",
        f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}", *sources,
    )  # fmt: skip
    run(
        str(binaries / "buf"), "lint", str(image), "--path", "plexsphere",
        "--config", '{"version":"v2","lint":{"use":["STANDARD","COMMENTS"]}}',
    )  # fmt: skip
    return descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())


def main() -> None:
    """Regenerate in place, or compare with `--check`."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        out = scratch / "out" if "--check" in sys.argv[1:] else PROTO
        out.mkdir(exist_ok=True)
        image = generate(out, scratch)
        if "--release" in sys.argv[1:]:
            protocompat.RELEASED.write_text(protocompat.text(image))
        protocompat.check(image, scratch)
        if out is PROTO:
            return
        fresh = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.py*")}
        committed = {
            path.relative_to(PROTO): path.read_bytes()
            for path in PROTO.rglob("*_pb2*.py*")
            if "__pycache__" not in path.parts
        }
        stale = sorted(str(name) for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
        if stale:
            raise SystemExit("stubs are out of date, run `make proto`: " + ", ".join(stale))


if __name__ == "__main__":
    main()
