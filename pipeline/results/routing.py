"""How tokens were shared out among experts, as a data frame."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import UserError
from pipeline.common.files import read_json

if TYPE_CHECKING:
    import pandas as pd


def routing_frame(folder: Path, run: str, adapted: "pd.DataFrame") -> "pd.DataFrame":
    """One row a (layer, expert): `run`, `share` of the tokens that reach the expert (%), `chosen`.

    `folder` holds routing.json as the train stage writes it; `adapted` is the run's `adapter_norms` frame. Raises
    UserError when the file holds no counts.
    """
    import pandas as pd

    content = read_json(folder / "routing.json")
    chosen = set(adapted.dropna(subset="expert")[["layer", "expert"]].itertuples(index=False, name=None))
    try:
        rows = [
            {
                "run": run,
                "layer": int(layer),
                "expert": expert,
                "share": 100 * count / content["tokens"],
                "chosen": (int(layer), expert) in chosen,
            }
            for layer, counts in content["layers"].items()
            for expert, count in enumerate(counts)
        ]
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{folder / 'routing.json'} holds no routing counts ({error}); run the train stage.") from error
    return pd.DataFrame(rows)
