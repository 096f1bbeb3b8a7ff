"""How far a study is: stages done, stages running, time left; a bar below the lines where there is a terminal."""

import sys
import time
from dataclasses import dataclass, field
from statistics import fmean
from threading import Lock
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


@dataclass
class Progress:
    """Which of a study's stages are done, and how long those to come may take; a bar while it is entered."""

    stages: list[str]
    started: float = field(default_factory=time.monotonic)
    done: set[str] = field(default_factory=set)
    running: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        # Lines alone where the output is a file or a pipe.
        live = sys.stdout.isatty()
        self._bar = Bar(*columns, console=Console(file=sys.stdout), disable=not live, transient=True)
        self._task = self._bar.add_task("", total=len(self.stages), completed=len(self.done))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, stage: str) -> None:
        """A stage begins."""
        with self.lock:
            self.running[stage] = time.monotonic()
            self._show()

    def finish(self, stage: str, *, ran: bool) -> None:
        """A stage is done; say so, unless it was up to date and known to be."""
        with self.lock:
            if stage in self.done:
                return
            self.done.add(stage)
            took = time.monotonic() - self.running.pop(stage, time.monotonic())
            if ran:
                self.seconds.setdefault(stage.partition("@")[0], []).append(took)
            text = f"{took:5.1f} s" if ran else "up to date"
            elapsed = clock(time.monotonic() - self.started)
            line = f"[{len(self.done):>3}/{len(self.stages)}] {elapsed}  {stage:<36} {text:>10}{self._left()}"
            print(line, flush=True)
            self._show()

    def _show(self) -> None:
        self._bar.update(self._task, completed=len(self.done), description=", ".join(sorted(self.running)))

    def _left(self) -> str:
        """Time left if stages take as long as those of their kind have, as many at once as so far.

        Nothing until a stage of every kind that is to come, but the last, has run.
        """
        left = [stage.partition("@")[0] for stage in self.stages if stage not in self.done]
        times = [value for values in self.seconds.values() for value in values]
        if not left or not times or not set(left) - {"aggregate"} <= self.seconds.keys():
            return ""
        at_once = sum(times) / (time.monotonic() - self.started)
        seconds = sum(fmean(self.seconds.get(kind, times)) for kind in left)
        return f"   about {clock(seconds / at_once)} left"


def clock(seconds: float) -> str:
    """Seconds as a person reads them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
