"""How far a study is: stages done, stages running, time left."""

import time
from dataclasses import dataclass, field
from statistics import fmean
from threading import Lock


@dataclass
class Progress:
    """Which of a study's stages are done, and how long those to come may take."""

    stages: list[str]
    started: float = field(default_factory=time.monotonic)
    done: set[str] = field(default_factory=set)
    running: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def start(self, stage: str) -> None:
        """A stage begins."""
        with self.lock:
            self.running[stage] = time.monotonic()

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
            print(
                f"[{len(self.done):>3}/{len(self.stages)}] {elapsed}  {stage:<36} {text:>10}{self._left()}", flush=True
            )

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
