"""What a mutant is: a control that is removed, and the attack that must then succeed."""

from dataclasses import dataclass

THREATS = "tests/e2e/threats/"
STORY = "tests/e2e/stories/test_main_job.py"


@dataclass(frozen=True)
class Mutant:
    """A control, the text that is it, what is left without it, and the attack that must then succeed.

    `also` holds further places of the same control, where each alone would stop the attack.
    """

    name: str
    file: str
    control: str
    without: str
    attack: str
    also: tuple[tuple[str, str, str], ...] = ()

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        """All places: file, control, what is left."""
        return ((self.file, self.control, self.without), *self.also)
