"""What each column of the schema may hold; checked at every start."""

from libs.columns import ColumnClass

COLUMNS = {
    "secrets": {
        "name": ColumnClass.IDENTIFIER,
        "reference": ColumnClass.REFERENCE,
    },
}
