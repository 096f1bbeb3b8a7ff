"""A client for an endpoint: one request at a time, or in batches at half the price, as its configuration says."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pipeline.api.batch import BatchClient
from pipeline.api.client import Client
from pipeline.api.config import EndpointConfig
from pipeline.api.endpoint import Endpoint
from pipeline.api.progress import Progress
from pipeline.api.replies import ReplyCache
from pipeline.api.summary import Summary


@asynccontextmanager
async def open_client(
    config: EndpointConfig, cache: ReplyCache, summary: Summary
) -> AsyncIterator[tuple[Client | BatchClient, Progress]]:
    """A client that stores replies in `cache` and counts in `summary`, and its progress bar."""
    progress, started = Progress(summary.label), time.monotonic()
    kind = BatchClient if config.batch else Client
    try:
        async with Endpoint(config) as endpoint:
            yield kind(config, endpoint, cache, summary, progress), progress
    finally:
        progress.close()
        summary.seconds = time.monotonic() - started
