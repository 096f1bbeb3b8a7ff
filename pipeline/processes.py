"""Processes that must not outlive the one that started them."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Have this process, one of multiprocessing's, end when its parent does, even if that is killed."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
