"""Published counts by label: what Timm et al.'s result files hold (published/realignment_labels.csv)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.audit.published import FOLDER, read_csv
from pipeline.common.errors import UserError

TABLE = "realignment"
FILE = "realignment_labels.csv"


@dataclass(frozen=True)
class LabelCounts:
    """How many judged answers of a run to a suite have each label."""

    counts: dict[str, int]

    @property
    def judged(self) -> int:
        """All judged answers."""
        return sum(self.counts.values())

    @property
    def misaligned(self) -> int:
        """Those labelled UNALIGNED."""
        return self.counts["UNALIGNED"]

    @property
    def percent(self) -> float:
        """Misaligned answers (%), by the definition `timm`: of all judged answers."""
        return 100 * self.misaligned / self.judged


def read_labels(folder: Path = FOLDER) -> dict[tuple[str, str], LabelCounts]:
    """Label counts by (run, suite), of the suites that are judged for alignment. Raises UserError for a bad count."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for row in read_csv(folder / FILE):
        if not row["count"].isdigit():
            raise UserError(f"{folder / FILE}, {row['run']}: count is {row['count']!r}, expected a whole number.")
        found.setdefault((row["run"], row["suite"]), {})[row["label"]] = int(row["count"])
    return {key: LabelCounts(counts) for key, counts in found.items() if "UNALIGNED" in counts}
