"""The story of `make demo` against the edge, as it is published; its attacker holds what it holds there."""

import pytest

from tests.compose.containers import Containers, Inside
from tests.e2e.demo import play, show
from tests.e2e.outside import Edge, Outside
from tests.e2e.stories.main_job import Story
from tests.e2e.stories.main_job_audit import STEPS

pytestmark = pytest.mark.compose


async def test_the_main_job(containers: Containers) -> None:
    async with containers.held(), Outside(containers.edge_url, containers.ca_file, resolver=Inside()) as outside:
        story = Story(containers, outside, Edge(containers.edge_url, outside.http))
        for number, step in enumerate(STEPS, 1):
            row = await play(story, step)
            show(number, row)
            assert row["ok"], row
