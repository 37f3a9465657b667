"""Generate the protobuf stubs and lint the contracts; `--check` says whether the committed stubs are current.

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


def generate(out: Path, scratch: Path) -> None:
    """Write stubs for every .proto under `out`, and lint the result with buf's STANDARD rules."""
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


def main() -> None:
    """Regenerate in place, or compare with `--check`."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if "--check" not in sys.argv[1:]:
            generate(PROTO, scratch)
            return
        out = scratch / "out"
        out.mkdir()
        generate(out, scratch)
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
