"""Settings of the access process."""

from libs.settings import OpenBao, Postgres, Runtime


class AccessSettings(Runtime):
    """All of them."""

    postgres: Postgres
    openbao: OpenBao
