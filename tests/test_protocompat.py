"""What a process of the last release would not understand is refused; what is added beside it is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from tools import protocompat, protogen

pytestmark = pytest.mark.unit
Change = Callable[[FileDescriptorProto], None]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    """The contracts as they are."""
    scratch = tmp_path_factory.mktemp("protos")
    return protogen.generate(scratch, scratch)


def changed(image: FileDescriptorSet, *changes: Change) -> FileDescriptorSet:
    """Return the contracts with changes in the file of secrets."""
    copy = FileDescriptorSet.FromString(image.SerializeToString())
    for change in changes:
        change(next(file for file in copy.file if file.name == "plexsphere/secrets/v1/secrets.proto"))
    return copy


def message(file: FileDescriptorProto, name: str = "FetchNodeSecretRequest") -> DescriptorProto:
    return next(one for one in file.message_type if one.name == name)


def field(file: FileDescriptorProto) -> FieldDescriptorProto:
    return next(one for one in message(file).field if one.number == 1)


def service(file: FileDescriptorProto) -> ServiceDescriptorProto:
    return next(one for one in file.service if one.name == "SecretsService")


def reserve(file: FileDescriptorProto) -> None:
    message(file).reserved_range.add(start=1, end=2)


def deprecate_field(file: FileDescriptorProto) -> None:
    field(file).options.deprecated = True


def deprecate_rpc(file: FileDescriptorProto) -> None:
    service(file).method[0].options.deprecated = True


def remove_field(file: FileDescriptorProto) -> None:
    message(file).field.remove(field(file))


def remove_rpc(file: FileDescriptorProto) -> None:
    service(file).method.pop(0)


def remove_service(file: FileDescriptorProto) -> None:
    file.service.remove(service(file))


def renumber(file: FileDescriptorProto) -> None:
    field(file).number = 99


def retype(file: FileDescriptorProto) -> None:
    field(file).type = FieldDescriptorProto.TYPE_INT64


def answer_otherwise(file: FileDescriptorProto) -> None:
    service(file).method[0].output_type = service(file).method[0].input_type


def stream(file: FileDescriptorProto) -> None:
    service(file).method[0].server_streaming = True


def add_field(file: FileDescriptorProto) -> None:
    message(file).field.add(
        name="added", number=99, label=FieldDescriptorProto.LABEL_OPTIONAL, type=FieldDescriptorProto.TYPE_STRING
    )


def add_rpc(file: FileDescriptorProto) -> None:
    added = service(file).method.add()
    added.CopyFrom(service(file).method[0])
    added.name = "FetchMore"


def rename_field(file: FileDescriptorProto) -> None:
    field(file).name, field(file).json_name = "renamed", "renamed"


def test_the_contracts_go_together_with_the_last_release(image: FileDescriptorSet, tmp_path: Path) -> None:
    protocompat.check(image, tmp_path)


def test_what_is_added_is_let_in(image: FileDescriptorSet, tmp_path: Path) -> None:
    added = changed(image, add_field, add_rpc, rename_field, deprecate_field, deprecate_rpc)
    protocompat.check(added, tmp_path, protocompat.text(image))


@pytest.mark.parametrize(
    "changes",
    [
        [remove_field], [remove_field, reserve], [remove_rpc], [remove_service], [renumber], [retype],
        [answer_otherwise], [stream],
    ],
)  # fmt: skip
def test_what_would_not_be_understood_is_refused(
    image: FileDescriptorSet, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: list[Change]
) -> None:
    with pytest.raises(SystemExit, match="would not understand"):
        protocompat.check(changed(image, *changes), tmp_path, protocompat.text(image))
    assert "plexsphere/secrets/v1/secrets.proto" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("before", "after"), [(deprecate_rpc, [remove_rpc]), (deprecate_field, [remove_field, reserve])]
)
def test_what_was_deprecated_for_a_release_may_go(
    image: FileDescriptorSet, tmp_path: Path, before: Change, after: list[Change]
) -> None:
    protocompat.check(changed(image, *after), tmp_path, protocompat.text(changed(image, before)))


def test_the_number_of_a_field_that_went_is_never_used_again(image: FileDescriptorSet, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="would not understand"):
        protocompat.check(changed(image, remove_field), tmp_path, protocompat.text(changed(image, deprecate_field)))
