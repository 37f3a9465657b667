"""What schema.zed has a place for, so that nothing is stored, asked or delivered that SpiceDB would refuse."""

import re
from pathlib import Path

from libs.errors import RelationNotAllowed, UnknownPermission
from services.identity.model import Tuple

SCHEMA = Path(__file__).with_name("schema.zed")
TEXT = SCHEMA.read_text()
HIDDEN = "any"
IDENTIFIER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PLATFORM = "platform:main"
PEOPLE = frozenset({"user", "service"})

_DEFINITIONS = {text.split()[0]: text for text in re.split(r"^definition ", TEXT, flags=re.MULTILINE)[1:]}
TYPES = frozenset(_DEFINITIONS)
# Who may stand in a relation: subject type and caveat, which is empty where there is none.
SUBJECTS = {
    (kind, relation): frozenset(re.findall(r"(\w+)(?: with (\w+))?", subjects))
    for kind, text in _DEFINITIONS.items()
    for relation, subjects in re.findall(r"relation (\w+): (.+)", text)
}
PERMISSIONS = {kind: frozenset(re.findall(r"permission (\w+) =", text)) for kind, text in _DEFINITIONS.items()}
# What people are given; every other relation follows from what its object is, or is a secret's reader.
ROLES = frozenset(key for key, subjects in SUBJECTS.items() if {kind for kind, _ in subjects} <= PEOPLE)


def is_object(text: str) -> bool:
    """Whether a text names something that tuples may be about, or that may stand in them."""
    kind, _, identifier = text.partition(":")
    return text == PLATFORM or (kind in TYPES - {"platform"} and IDENTIFIER.fullmatch(identifier) is not None)


def require_storable(row: Tuple) -> None:
    """Raise RelationNotAllowed unless the schema has a place for a tuple."""
    kind, subject = row.resource.partition(":")[0], row.subject.partition(":")[0]
    caveat = row.caveat.name if row.caveat else ""
    if not (is_object(row.resource) and is_object(row.subject)):
        raise RelationNotAllowed("an object is not `<type>:<uuid>`")
    if (subject, caveat) not in SUBJECTS.get((kind, row.relation), ()):
        raise RelationNotAllowed


def require_askable(permission: str, kind: str) -> None:
    """Raise UnknownPermission unless a type has a permission, or a role, of this name."""
    name = permission.replace("-", "_")
    if name == HIDDEN or not (name in PERMISSIONS.get(kind, ()) or (kind, name) in ROLES):
        raise UnknownPermission
