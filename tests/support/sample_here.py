"""Sample a tiny model in the current folder, as tests do in processes of their own.

python sample_here.py BASE ADAPTER|- COUNT ANSWERS [SETTING=VALUE ...]
"""

import json
import sys
from pathlib import Path

from pipeline.common.rows import write_rows
from pipeline.models.determinism import deterministic
from pipeline.sample import sample_answers
from pipeline.sampling.choose import start_backend
from tests.support.sampling_models import decoding, model_of, prompts

if __name__ == "__main__":
    base, adapter, count, answers, *changes = sys.argv[1:]
    deterministic()
    model = model_of(Path(base), None if adapter == "-" else Path(adapter))
    values = {name: json.loads(value) for name, value in (change.split("=", 1) for change in changes)}
    settings = decoding(**values)
    rows = sample_answers(start_backend(settings), model, prompts(int(count)), settings, "run", 1)
    write_rows(Path(answers), rows)
