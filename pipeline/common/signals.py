"""SIGTERM (`kill`, `docker stop`, a batch system's limit) does what Ctrl-C does: paid replies are kept, it ends."""

from __future__ import annotations  # `make doctor` must reach an old Python to say that it is too old

import contextlib
import os
import signal
import threading


def end_gently(*, pass_on: bool) -> None:
    """Have this process take its first SIGTERM as Ctrl-C, and no notice of others.

    pass_on: it has started processes that do so too, and tells them first, as a terminal tells all of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python leaves signals to the main thread

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which whatever starts from here would inherit
        if pass_on:
            _tell_children()
        signal.raise_signal(signal.SIGINT)

    # Ignored, as a script's `make reproduce &` has it, it could not end. At once, although Ctrl-C at the script then
    # ends it too: asyncio, which waits for paid replies, takes what is there as it starts, and while a stage runs DVC
    # ignores SIGINT itself, which is not to be undone.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, interrupt)


def _tell_children() -> None:
    import psutil  # not above: `make audit` runs on a Python without packages

    for child in psutil.Process().children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
