"""Refuse contracts that a process of the previous release, beside ours in a rolling upgrade, would not understand.

`proto/released.txtpb` holds the contracts of the last release; `protogen.py --release` makes it. See decision 0050.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

OURS = "plexsphere/"
RELEASED = Path(__file__).resolve().parent.parent / "proto" / "released.txtpb"
# What travels is binary: names may change, numbers and types may not.
WIRE = ("WIRE",)
# The previous release calls what it called, and reads what it read, unless it was told beforehand.
THERE = ("PACKAGE_SERVICE_NO_DELETE", "RPC_NO_DELETE", "FIELD_NO_DELETE", "ENUM_VALUE_NO_DELETE")
REFUSED = (
    "\ncontracts: a process of the last release beside this one would not understand it (decision 0050).\n"
    "Add beside what is there, mark the old as deprecated, release, and take it away after that."
)


def text(image: FileDescriptorSet) -> str:
    """Return our contracts of an image as text, a line for each message, enum and service."""
    lines = []
    for file in ours(image).file:
        head = FileDescriptorProto(name=file.name, package=file.package, syntax=file.syntax, dependency=file.dependency)
        lines.append(f"file {{ {text_format.MessageToString(head, as_one_line=True)}")
        for kind in ("message_type", "enum_type", "service"):
            lines += [
                f"  {kind} {{ {text_format.MessageToString(one, as_one_line=True)} }}" for one in getattr(file, kind)
            ]
        lines.append("}")
    return "\n".join([*lines, ""])


def ours(image: FileDescriptorSet) -> FileDescriptorSet:
    """Return our files of an image, without comments and without rules of validation, which no wire carries."""
    found = FileDescriptorSet(file=[file for file in image.file if file.name.startswith(OURS)])
    for file in found.file:
        file.ClearField("source_code_info")
        for message in file.message_type:
            _bare(message)
    return found


def _bare(message: DescriptorProto) -> None:
    for field in message.field:
        deprecated = field.options.deprecated
        field.ClearField("options")
        if deprecated:
            field.options.deprecated = True
    for inner in message.nested_type:
        _bare(inner)


def _without_deprecated(released: FileDescriptorSet) -> FileDescriptorSet:
    """Return what the previous release could still count on."""
    kept = FileDescriptorSet()
    kept.CopyFrom(released)
    for file in kept.file:
        messages = list(file.message_type)
        enums = list(file.enum_type)
        while messages:
            message = messages.pop()
            messages += message.nested_type
            enums += message.enum_type
            _drop(message.field)
        for service in file.service:
            _drop(service.method)
        for enum in enums:
            _drop(enum.value)
        _drop(file.service)
    return kept


def _drop(elements: Any) -> None:  # the stubs have no type for any repeated field
    for element in [one for one in elements if one.options.deprecated]:
        elements.remove(element)


def check(image: FileDescriptorSet, scratch: Path, released: str | None = None) -> None:
    """Stop with buf's words and ours unless the contracts of `image` go together with those of the last release."""
    before = text_format.Parse(RELEASED.read_text() if released is None else released, FileDescriptorSet())
    foreign = [file for file in image.file if not file.name.startswith(OURS)]
    (scratch / "now.binpb").write_bytes(image.SerializeToString())
    failed = False
    for name, kept, rules in (("all", before, WIRE), ("promised", _without_deprecated(before), THERE)):
        against = scratch / f"{name}.binpb"
        against.write_bytes(FileDescriptorSet(file=[*foreign, *kept.file]).SerializeToString())
        command = [
            str(Path(sys.executable).parent / "buf"), "breaking", "now.binpb", "--against", against.name,
            "--path", OURS, "--config", json.dumps({"version": "v2", "breaking": {"use": rules}}),
        ]  # fmt: skip
        failed |= subprocess.run(command, cwd=scratch, check=False).returncode != 0
    if failed:
        raise SystemExit(REFUSED)
