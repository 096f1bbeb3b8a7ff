"""Money: what a request may cost is set aside before it is sent, under the account's cap."""

import asyncio

from pipeline.api.config import EndpointConfig
from pipeline.api.replies import Claim, ReplyCache
from pipeline.api.summary import Summary
from pipeline.common.errors import UserError


class Budget:
    """Claims requests and sets money aside for them.

    The account is in the reply cache, so the cap holds for all processes that share it, killed ones too. Once a reply
    cost more than its prompt and its limit allow (tokens that the endpoint does not show), as many times as much is
    set aside for those that follow: what was in flight then is the most by which the cap can be passed.
    """

    def __init__(self, config: EndpointConfig, summary: Summary, cache: ReplyCache) -> None:
        self._account = summary.account
        self._cap_usd = config.budget_usd
        self._summary = summary
        self._cache = cache
        self._in_flight = 0
        self._settled = asyncio.Event()

    def expected_usd(self, most_usd: float) -> float:
        """What to set aside for a request that should cost `most_usd` at most."""
        return most_usd * self._summary.dearest

    async def claim(self, key: str, usd: float) -> Claim:
        """Claim a request and set `usd` aside for it; it must be settled then.

        Waits for this process's requests in flight where that may make room; raises UserError where not.
        """
        while (claim := self._cache.claim(self._account, key, usd, self._cap_usd)) is Claim.TOO_DEAR:
            if self._in_flight == 0:
                raise self.refusal(usd)
            self._settled.clear()
            await self._settled.wait()
        if claim is Claim.OURS:
            self._in_flight += 1
        return claim

    def settle(self, back_usd: float = 0.0) -> None:
        """A request that was claimed has ended; `back_usd` of what was set aside for it is not spent."""
        self._in_flight -= 1
        self._settled.set()
        if back_usd:
            self._cache.give_back(self._account, back_usd)

    def learn(self, most_usd: float, usd: float) -> None:
        """Take note of what a reply cost that should have cost `most_usd` at most."""
        if most_usd > 0:
            self._summary.dearest = max(self._summary.dearest, usd / most_usd)

    def claim_all(self, most_usd: dict[str, float]) -> tuple[dict[str, float], int]:
        """Claim as many of these, from the first, as fit under the cap.

        What was set aside for each that is ours, and how many were looked at. Raises UserError where none fits.
        """
        ours: dict[str, float] = {}
        for place, (key, most) in enumerate(most_usd.items()):
            usd = self.expected_usd(most)
            claim = self._cache.claim(self._account, key, usd, self._cap_usd)
            if claim is Claim.TOO_DEAR:
                if place == 0:
                    raise self.refusal(usd)
                return ours, place
            if claim is Claim.OURS:
                ours[key] = usd
        return ours, len(most_usd)

    def refusal(self, usd: float) -> UserError:
        """The sentence to stop with when the next request, at most `usd`, does not fit."""
        return UserError(
            f"{self._summary.label} has spent {self._cache.spent_usd(self._account):.4f} of its {self._cap_usd} USD "
            "(requests on their way and replies that got lost count as paid), and the next request may cost up to "
            f"{usd:.4f}. What was answered is kept in {self._cache.path}: raise budget_usd of {self._account} in "
            "params.yaml and run again."
        )
