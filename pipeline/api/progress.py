"""A progress bar for asking an endpoint: done/total, requests/s, money so far, time left."""

import sys

from pipeline.api.summary import Summary


class Progress:
    """A tqdm bar on stderr; a line every half minute where stderr is no terminal."""

    def __init__(self, account: str) -> None:
        from tqdm import tqdm

        self._expected = 0
        self._bar = tqdm(desc=account, total=0, unit="req", mininterval=0.5 if sys.stderr.isatty() else 30)

    def expect(self, more: int) -> None:
        """`more` requests will be asked."""
        self._expected += more
        self._bar.total = self._expected
        self._bar.refresh()

    def replied(self, summary: Summary) -> None:
        """One request is done with, answered or given up."""
        if summary.usd:
            self._bar.set_postfix_str(f"{summary.usd:.4f} USD", refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
