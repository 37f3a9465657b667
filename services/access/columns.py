"""What each column of the schema may hold; checked at every start. The schema has no table yet."""

from libs.columns import Declared

COLUMNS: Declared = {}
