"""A headless Chromium that opens a file and tells what it asked the network for. Skips, loudly, where there is none."""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import REPOSITORY

AXE = REPOSITORY / ".cache" / "npm" / "node_modules" / "axe-core" / "axe.min.js"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


def _missing() -> str | None:
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not found (Debian: apt-get install chromium chromium-driver)" if absent else None


def need_browser() -> None:
    """Skip the test, with a warning that pytest prints at its end, where there is no browser."""
    if reason := _missing():
        warnings.warn(f"THE REPORT WAS NOT TESTED IN A BROWSER: {reason}", stacklevel=2)
        pytest.skip(reason)


@contextmanager
def browser(folder: Path, *, width: int = 1440, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A driver whose profile is in `folder`; `requests` and `errors` read its logs."""
    need_browser()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*_FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False,
        })  # fmt: skip
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})
        driver.get("about:blank")
        requests(driver)  # what the browser's own first page asked for
        yield driver
    finally:
        driver.quit()


def requests(driver: Any) -> list[str]:
    """What was asked for since the last call, the file itself and data: addresses apart."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [it["params"]["request"]["url"] for it in messages if it["method"] == "Network.requestWillBeSent"]
    return [address for address in asked if not address.startswith(("file:", "data:"))]


def errors(driver: Any) -> list[str]:
    """What the console complained of since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
