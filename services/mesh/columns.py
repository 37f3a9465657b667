"""What each column of the schema may hold; checked at every start."""

from libs.columns import ColumnClass

COLUMNS = {
    "signing_keys": {
        "kid": ColumnClass.IDENTIFIER,
        "public_key": ColumnClass.PUBLIC_KEY,
    },
}
