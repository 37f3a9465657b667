"""What the rules of access speak about: the kinds of session that the contract knows."""

from enum import StrEnum


class Kind(StrEnum):
    """What a session is for."""

    SSH = "ssh"
    K8S = "k8s"
    TCP = "tcp"
