"""One system in containers for the whole run; it goes again whatever happens."""

from collections.abc import Iterator

import pytest

from tests.compose.containers import Containers
from tests.compose.engine import Engine


@pytest.fixture(scope="session")
def containers() -> Iterator[Containers]:
    engine = Engine.find()
    made = Containers.prepare(engine)
    try:
        engine.up()
        yield made
    finally:
        engine.down()
