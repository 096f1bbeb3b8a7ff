"""Doctor's checks of a study's models: can they be fetched, by whom, and is there room for them?"""

import http.client
import json
import os
import shutil
from functools import partial
from pathlib import Path

from pipeline.doctor.check import GB, Check
from pipeline.doctor.probe import http_status, open_reply, probe_all
from pipeline.models.hub import is_fetched
from pipeline.models.known import checkpoint_bytes, config_of
from pipeline.params.schema import HubBase


def check_model(base: str, hub: HubBase) -> Check:
    """Ask the hub for the base's config.json at its commit, with the token if there is one; look for its folder."""
    from huggingface_hub import constants

    if hub.folder is not None:
        there = Path(hub.folder).is_dir()
        missing = Check("fail", "model", f"{base}: there is no folder {hub.folder}", "bring it, or correct its path")
        return Check("ok", "model", f"{base}: the folder {hub.folder}, not taken in yet") if there else missing
    found = f"{base}: {hub.repository} at {hub.revision[:12]}"
    if constants.HF_HUB_OFFLINE:
        return Check("warn", "model", f"{found} is not in the cache, and HF_HUB_OFFLINE is set", "unset it")
    code = http_status(f"{constants.ENDPOINT}/{hub.repository}/resolve/{hub.revision}/config.json", _hub_token())
    if code is None:
        remedy = "fetch it where there is a network (`dvc repro pin@...`) and bring HF_HOME along"
        return Check("warn", "model", f"{found} cannot be reached", remedy)
    if code in (401, 403):
        token = "the Hugging Face token has no access" if _hub_token() else "there is no Hugging Face token"
        remedy = f"accept its licence at https://huggingface.co/{hub.repository}, then export HF_TOKEN=..."
        return Check("fail", "model", f"{found} is gated and {token} (HTTP {code})", remedy)
    if code >= 400:
        remedy = f"check bases.hub.{base} in params.yaml" if code == 404 else "try again later"
        return Check("fail" if code == 404 else "warn", "model", f"{found}: the hub answers HTTP {code}", remedy)
    return Check("ok", "model", f"{found} can be fetched")


def check_model_disk(bases: dict[str, HubBase], here: dict[str, bool], *, offline: bool) -> Check:
    """Room for the checkpoints that are not in the Hugging Face cache yet, by the hub's sizes, else by its config."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / GB
    absent = {base: hub for base, hub in bases.items() if not here[base] and hub.folder is None}
    if not absent:
        return Check("ok", "model disk", f"nothing to fetch; {free:.1f} GB free for {cache}")
    asked: dict[str, int | None] = {}
    if not offline and not constants.HF_HUB_OFFLINE:
        asked = probe_all({base: partial(_size, hub) for base, hub in absent.items()})
    sizes = {base: size for base, size in asked.items() if size is not None}
    for base in absent.keys() - sizes.keys():
        config = config_of(absent[base].repository, absent[base].revision)
        if config is not None:
            sizes[base] = round(checkpoint_bytes(config))
    needed = sum(sizes.values()) / GB
    unknown = sorted(absent.keys() - sizes.keys())
    found = f"{free:.1f} GB free for {cache}, {needed:.1f} GB to fetch" if sizes else f"{free:.1f} GB free for {cache}"
    if needed > free:
        return Check("fail", "model disk", found, "free some space, or set HF_HOME to a larger disk")
    if unknown:
        return Check("warn", "model disk", f"{found}; sizes of {', '.join(unknown)} unknown", "ask again online")
    return Check("ok", "model disk", found)


def _size(hub: HubBase) -> int | None:
    """Bytes of the files that `pin@` fetches, as the hub lists them; None if it does not say."""
    from huggingface_hub import constants

    url = f"{constants.ENDPOINT}/api/models/{hub.repository}/tree/{hub.revision}?recursive=true"
    try:
        with open_reply(url, _hub_token()) as reply:
            entries = json.loads(reply.read())
        return sum(entry["size"] for entry in entries if is_fetched(entry["path"]))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None


def _hub_token() -> str | None:
    """The Hugging Face token where the hub's client looks; `get_token` itself may refresh one over the network."""
    from huggingface_hub import constants

    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    path = Path(constants.HF_TOKEN_PATH)
    if not token and path.exists():
        token = path.read_text(encoding="utf-8", errors="replace")
    return (token or "").strip() or None
