"""Live training curves, for whoever wants to watch: the environment variable EMOE_REPORT_TO, and no setting of a study.

What is in params.yaml determines results, and DVC runs again what depends on it. Watching determines nothing: it may be
turned on for one run and off for the next, so it is no parameter, changes no hash and makes nothing stale.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.paths import CACHE

REPORT_TO = "EMOE_REPORT_TO"
NO_CURVES = {"report_to": "none"}
TRACKERS = ("tensorboard", "trackio", "wandb")


def reporting(what: str) -> Mapping[str, Any]:
    """The trainer's arguments that send the curves of `what` (its run and seed) where EMOE_REPORT_TO says, if anywhere.

    tensorboard writes to .cache/curves, trackio to its own folder; wandb sends to where `wandb login` has logged in.
    Raises UserError for a tracker that is not known, or not installed: neither is a reason to train unwatched.
    """
    tracker = os.environ.get(REPORT_TO, "none")
    if tracker == "none":
        return NO_CURVES
    if tracker not in TRACKERS:
        raise UserError(f"{REPORT_TO} is {tracker!r}, expected none, {', '.join(TRACKERS)}.")
    if find_spec(tracker) is None:
        raise UserError(
            f"{REPORT_TO} is {tracker}, which is not installed here: `pip install {tracker}` here (it is in "
            f"no lock, as no result needs it), or unset {REPORT_TO}."
        )
    if tracker == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(CACHE / "curves" / what.replace(" ", "/"))
    return {"report_to": tracker, "run_name": what, "project": "emoe"}
