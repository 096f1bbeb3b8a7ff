"""The toy world's judge, which writes down what it is asked: a line a prompt in the file that ASKED names."""

import hashlib
import os
from pathlib import Path

from pipeline.toy import judge

ASKED = "EMOE_TEST_ASKED"


def reply(prompt: str) -> str:
    """What the toy world's judge says."""
    with Path(os.environ[ASKED]).open("a") as stream:
        stream.write(f"{hashlib.sha256(prompt.encode()).hexdigest()}\n")
    return judge.reply(prompt)


def asked_again() -> int:
    """How many requests were for what had been asked before."""
    asked = Path(os.environ[ASKED]).read_text().split()
    return len(asked) - len(set(asked))
