"""Custody of secret bytes: not shown, not copied, wiped; and a process that cannot be dumped."""

import base64
import binascii
import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from libs.custody import Secret, read_secret_file, take

pytestmark = pytest.mark.unit

PLANTED = b"planted-7f1c9e"


def test_a_secret_is_never_shown() -> None:
    secret = Secret(PLANTED)
    shown = f"{secret} {secret!r} {[secret]} {secret:>20}"
    assert "planted" not in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            leak(secret)
    with pytest.raises(TypeError):
        assert secret == secret  # noqa: PLR0124 — comparing is what is refused


def test_it_is_wiped_in_place_when_the_block_ends() -> None:
    with Secret(PLANTED) as secret:
        held = secret.reveal()
        assert secret.matches(PLANTED)
        assert secret.matches(Secret(PLANTED))
        assert not secret.matches(b"other")
    assert held == bytes(len(PLANTED))


@pytest.mark.parametrize("text", [b"cGxhbnRlZA==", b"eA==", b""], ids=["many", "one", "none"])
def test_what_a_library_made_is_moved_and_not_copied(text: bytes) -> None:
    made = binascii.a2b_base64(text)
    with take(made) as secret:
        assert secret.matches(base64.b64decode(text))
    assert made == bytes(len(made)) or len(made) == 1
    assert chr(120).encode() == b"x"


def test_a_file_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(PLANTED)
    path.chmod(0o640)
    assert read_secret_file(path).matches(PLANTED)
    path.chmod(0o644)
    with pytest.raises(PermissionError):
        read_secret_file(path)


def test_a_hardened_process_is_not_dumpable_and_leaves_no_core() -> None:
    code = (
        "import ctypes, faulthandler, resource; from libs.custody import harden; harden();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE),"
        " faulthandler.is_enabled())"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "0 (0, 0) False"


def test_a_crash_with_a_secret_in_flight_says_nothing_of_it() -> None:
    code = (
        "from libs import telemetry; telemetry.set_up_logs('test', 'info');"
        "value = '" + PLANTED.decode() + "'\n"
        "def handler(value):\n    raise ValueError('no good: ' + value)\n"
        "handler(value)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "ValueError" in ran.stdout
    assert PLANTED.decode() not in ran.stdout + ran.stderr


# Without capabilities root is an ordinary user as well (capset(2), version 3); a child that is forked has none either.
READER = """
import ctypes, os, struct, time
from libs.custody import harden
assert ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0
for prepare in (lambda: None, harden):
    ready, tell = os.pipe()
    if not (pid := os.fork()):
        prepare()
        os.write(tell, b"x")
        time.sleep(60)
    os.read(ready, 1)
    try:
        open(f"/proc/{pid}/mem", "rb").close()
        print("open")
    except PermissionError:
        print("refused")
    os.kill(pid, 9)
"""


def test_another_process_of_the_same_user_reads_the_memory_only_of_what_is_not_hardened() -> None:
    ran = subprocess.run([sys.executable, "-c", READER], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == ["open", "refused"]
