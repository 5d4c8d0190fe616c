"""What a long command draws on a terminal, and leaves there."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

DRAWS = """
from ctl.progress import drawn_line
with drawn_line() as draw:
    draw("first")
    draw("x" * 200)
    raise SystemExit("failed")
"""


def drawn(columns: int) -> str:
    """What a terminal of so many columns gets."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen([sys.executable, "-c", DRAWS], stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
    text = b""
    try:
        while more := os.read(ours, 65536):
            text += more
    except OSError:  # EIO: the terminal's other end is closed
        pass
    os.close(ours)
    return text.decode()


def test_a_line_is_drawn_over_and_gone_before_anything_else_is_said() -> None:
    assert drawn(40) == f"\r\033[Kfirst\r\033[K{'x' * 39}\r\033[Kfailed\r\n"


def test_elsewhere_each_text_is_a_line() -> None:
    done = subprocess.run([sys.executable, "-c", DRAWS], capture_output=True, text=True, check=False)
    assert done.stderr == f"first\n{'x' * 200}\nfailed\n"
