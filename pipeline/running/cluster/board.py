"""Where every stage of a study is: a grid of runs x stages, redrawn in a terminal and kept in a file."""

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.common.files import write_text
from pipeline.running.progress import clock

REFRESH_S = 1.0
ENDED = ("done", "failed", "not run")


@dataclass
class Cell:
    """One stage: waiting, running (on a node, since then), done, failed, or not run (for a failed one before it)."""

    state: str = "waiting"
    node: str = ""
    since: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        return {
            "running": f"{self.node} {clock(time.monotonic() - self.since)}",
            "done": f"done {clock(self.seconds)}",
            "failed": "FAILED",
        }.get(self.state, self.state)


@dataclass
class Board:
    """The grid. Rows and columns are the two halves of the stages' names, in the order in which they are given."""

    stages: list[str]
    path: Path
    live: bool = field(default_factory=sys.stdout.isatty)
    cells: dict[str, Cell] = field(init=False)
    _started: float = field(default_factory=time.monotonic)
    _drawn: int = 0
    _refreshed: float = 0.0

    def __post_init__(self) -> None:
        self.cells = {stage: Cell() for stage in self.stages}
        # A grid that is higher than the terminal cannot be drawn over: lines then, as in a file.
        self.live = self.live and str(self).count("\n") < shutil.get_terminal_size().lines

    def run(self, stage: str, node: str) -> None:
        """The stage has begun on a node; again, if an earlier node was lost. Late news of what has ended is ignored."""
        before = self.cells[stage]
        if before.state in ENDED:
            return
        self.cells[stage] = Cell(state="running", node=node, since=time.monotonic())
        self._say(stage, f"on {node}" + f", cut off on {before.node}" * (before.state == "running"))

    def lose(self, alive: Mapping[str, str]) -> None:
        """Stages that run on nodes which are no longer alive wait for Ray to start them elsewhere."""
        for stage, cell in self.cells.items():
            if cell.state == "running" and cell.node not in alive.values():
                self._say(stage, f"waiting, cut off on {cell.node}")
                self.cells[stage] = Cell()

    def end(self, stage: str, state: str, node: str = "", seconds: float = 0.0) -> None:
        """The stage is done, failed or not to be run."""
        self.cells[stage] = Cell(state=state, node=node, seconds=seconds)
        self._say(stage, f"{state} in {seconds:.1f} s on {node}" if seconds else state)

    def count(self, state: str) -> int:
        """How many stages are in this state."""
        return sum(cell.state == state for cell in self.cells.values())

    def show(self, *, last: bool = False) -> None:
        """Write the grid to its file, and in a terminal draw it over the one before."""
        if not last and time.monotonic() - self._refreshed < REFRESH_S:
            return
        self._refreshed = time.monotonic()
        grid = str(self)
        write_text(self.path, grid)
        if self.live:
            columns = shutil.get_terminal_size().columns
            lines = "".join(f"{line[: columns - 1]}\n" for line in grid.splitlines())
            print((f"\033[{self._drawn}F\033[J" if self._drawn else "") + lines, end="", flush=True)
            self._drawn = grid.count("\n")
        elif last:
            print(grid, end="", flush=True)

    def _say(self, stage: str, words: str) -> None:
        if not self.live:
            elapsed = clock(time.monotonic() - self._started)
            print(f"[{self.count('done'):>3}/{len(self.stages)}] {elapsed}  {stage:<36} {words}", flush=True)

    def __str__(self) -> str:
        names = [stage.partition("@")[::2] for stage in self.stages]
        kinds = list(dict.fromkeys(kind for kind, _ in names))
        rows = [["", *kinds]]
        for key in dict.fromkeys(key for _, key in names):
            rows.append([key, *(str(self.cells.get(f"{kind}@{key}", "")) for kind in kinds)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        counts = ((state, self.count(state)) for state in ("running", "waiting", *ENDED))
        states = ", ".join(f"{count} {state}" for state, count in counts if count)
        return "\n".join([*lines, f"{clock(time.monotonic() - self._started)}: {states}"]) + "\n"
