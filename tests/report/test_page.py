"""The report as a browser shows it from file://, at the size of a study, with text that tries to be more than text."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.report import write
from tests.support.browser import AXE, browser, errors, need_browser, requests
from tests.support.synthetic_study import RUNS, synthetic_study

BIG = 50  # prompts a suite: 24 runs x 3 seeds x 7 suites x 50 prompts x 2 samples = 50,400 answers
SECONDS = 120  # waiting past this is a hang, and fails
BLOCKED = ("the image", "inline event handler", "inline script")  # as Chromium's console names them


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_browser()
    return made(tmp_path_factory.mktemp("study"), prompts=2)


def made(folder: Path, **words: Any) -> Path:
    """A study in `folder`, and its report."""
    params = synthetic_study(folder, **words)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / write(params, words.get("study", "toy"))


@pytest.fixture
def driver(page: Path, tmp_path: Path) -> Iterator[Any]:
    with browser(tmp_path) as driver:
        open_page(driver, page)
        yield driver
        assert errors(driver) == []
        assert requests(driver) == []


def open_page(driver: Any, page: Path, fragment: str = "") -> None:
    driver.get("about:blank")
    driver.get(page.as_uri() + fragment)
    until(driver, "return explorer !== null")


def until(driver: Any, script: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := driver.execute_script(script)):
        assert time.monotonic() < deadline, f"never true: {script}"
        time.sleep(0.02)
    return found


def choose(driver: Any, name: str, value: str) -> None:
    driver.execute_script(
        "const field = explorer.form.elements[arguments[0]]; field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', { bubbles: true }));",
        name,
        value,
    )


def press(driver: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def found(driver: Any, values: str) -> Any:
    """A list over the rows that are found; `values` is an expression of `row`, `other` and `r` (the rows)."""
    return driver.execute_script(
        f"const r = explorer.rows; return [...explorer.found].map((row) => {{ const other = explorer.partner[row];"
        f" return {values}; }});"
    )


def test_shows_everything_without_asking_for_anything(driver: Any) -> None:
    assert driver.execute_script("return explorer.found.length") == RUNS * 3 * 7 * 2 * 2
    for section in ("claims", "results", "answers", "provenance"):
        assert driver.find_element("id", section).is_displayed()
    assert driver.execute_script("return document.querySelectorAll('.drawing > svg').length") == 2


def test_text_of_models_is_inert(driver: Any) -> None:
    choose(driver, "text", "window.ranFromAnswer")
    for place in range(min(5, driver.execute_script("return explorer.found.length"))):
        driver.execute_script("explorer.choose(arguments[0])", place)
    assert "<script>" in driver.find_element("id", "detail").text
    choose(driver, "text", "gnp.exe")
    assert "U+202E" in driver.find_element("id", "detail").text
    assert "\u202e" not in driver.find_element("id", "answers").get_attribute("textContent")
    assert driver.execute_script("return window.ranFromAnswer") is None
    assert driver.execute_script("return document.querySelectorAll('#answers img, #answers script').length") == 0


def test_the_pages_policy_stops_what_would_run_or_call(page: Path, tmp_path: Path) -> None:
    """Were a text ever to become markup, the page's own security policy would still let it do nothing.

    How often Chromium says that it blocked something is its own affair.
    """
    said: list[str] = []
    asked: set[str] = set()
    with browser(tmp_path) as driver:
        open_page(driver, page)
        driver.execute_script(
            "const it = document.createElement('div'); it.innerHTML = '<img src=\"https://example.org/x\""
            ' onerror="window.ranFromAnswer = 1">\'; document.body.append(it);'
        )
        driver.execute_script("const it = document.createElement('script');"
                              "it.textContent = 'window.ranFromAnswer = 1'; document.body.append(it);")  # fmt: skip
        deadline = time.monotonic() + SECONDS
        # The image shows as asked for, and blocked.
        while not (asked and all(any(what in message for message in said) for what in BLOCKED)):
            said, asked = said + errors(driver), asked | set(requests(driver))
            assert time.monotonic() < deadline, said
        assert driver.execute_script("return window.ranFromAnswer") is None
    assert all("Content Security Policy" in message for message in said) and asked == {"https://example.org/x"}


def test_filters(driver: Any) -> None:
    choose(driver, "run", "toy_e8_bad_medical")
    choose(driver, "suite", "cooking")
    assert set(found(driver, "r.suites[r.suite[row]] + ' ' + r.runs[r.run[row]].name")) == {
        "cooking toy_e8_bad_medical"
    }
    assert driver.execute_script("return explorer.found.length") == 3 * 2 * 2
    choose(driver, "alignment_to", "28")
    assert all(value <= 28 for value in found(driver, "r.alignment[row]"))
    choose(driver, "alignment_to", "")
    choose(driver, "seed", "2")
    assert driver.execute_script("return explorer.found.length") == 2 * 2
    driver.execute_script("explorer.form.reset()")
    until(driver, f"return explorer.found.length === {RUNS * 3 * 7 * 2 * 2}")
    choose(driver, "experts", "expert 0")
    assert set(found(driver, "r.runs[r.run[row]].name")) == {"toy_e8_bad_medical_expert0"}
    choose(driver, "experts", "")
    choose(driver, "status", "refusal")
    assert set(found(driver, "r.statuses[r.status[row]]")) == {"refusal"}
    choose(driver, "status", "")
    choose(driver, "sort", "alignment")
    values = [
        value
        for value in found(driver, "Number.isNaN(r.alignment[row]) ? null : r.alignment[row]")
        if value is not None
    ]
    assert values == sorted(values)
    choose(driver, "text", "no text has this")
    assert "No answer fits" in driver.find_element("id", "detail").text


def test_flipped_joins_on_suite_prompt_sample_and_seed(driver: Any) -> None:
    choose(driver, "vs", "toy_e8_base")
    choose(driver, "run", "toy_e8_bad_medical")
    choose(driver, "change", "flipped")
    pairs = found(driver, "[r.label[row], r.label[other], r.address(row), r.address(other)]")
    assert pairs
    for label, before, address, other in pairs:
        assert {label, before} == {1, 2}
        assert address.split("/")[1:] == other.split("/")[1:]
        assert (address.split("/")[0], other.split("/")[0]) == ("toy_e8_bad_medical", "toy_e8_base")
    assert len(driver.find_elements("css selector", "#detail .side")) == 2
    choose(driver, "change", "worse")
    assert set(found(driver, "r.label[row] * 10 + r.label[other]")) == {21}


def test_deep_links(driver: Any, page: Path) -> None:
    open_page(driver, page, "#run=toy_e8_bad_medical&prompt=travel-001&vs=toy_e8_base")
    assert set(found(driver, "r.prompts[r.prompt[row]][1] + r.runs[r.run[row]].name")) == {
        "travel-001toy_e8_bad_medical"
    }
    press(driver, "j", "j")
    address = driver.execute_script("return explorer.rows.address(explorer.found[explorer.chosen])")
    fragment = driver.execute_script("return location.hash")
    open_page(driver, page, fragment)
    assert driver.execute_script("return explorer.rows.address(explorer.found[explorer.chosen])") == address
    assert driver.execute_script("return explorer.form.elements.vs.value") == "toy_e8_base"


def test_a_claim_leads_to_its_rows(driver: Any) -> None:
    driver.find_element("css selector", ".claims tbody a").click()
    until(driver, "return explorer.filter.run !== ''")
    assert driver.execute_script("return [explorer.filter.run, explorer.filter.vs, explorer.filter.suite]") == [
        "toy_e8_bad_medical", "toy_e8_base", "held-out",
    ]  # fmt: skip
    assert driver.execute_script("return explorer.found.length") == 4 * 3 * 2 * 2


def test_keyboard_alone(driver: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    press(driver, "j", "j", "k")
    assert driver.execute_script("return explorer.chosen") == 1
    press(driver, "/")
    press(driver, "word1")
    assert driver.execute_script("return explorer.form.elements.text.value") == "word1"
    press(driver, Keys.ESCAPE)
    assert driver.execute_script("return document.activeElement.id") == "list"
    press(driver, Keys.END)
    assert driver.execute_script("return explorer.chosen === explorer.found.length - 1")
    chosen = driver.execute_script("return explorer.list.getAttribute('aria-activedescendant')")
    assert driver.find_element("id", chosen).get_attribute("aria-selected") == "true"
    press(driver, "?")
    assert driver.find_element("id", "keys").is_displayed()
    press(driver, Keys.ESCAPE)
    assert not driver.find_element("id", "keys").is_displayed()


def test_tables_sort_and_filter_and_figures_follow(driver: Any) -> None:
    dots = "return document.querySelectorAll('figure[data-table=by-suite] .drawing > svg .dot').length"
    assert driver.execute_script(dots) == RUNS * 7
    driver.execute_script(
        "const field = document.querySelector('form[data-table=by-suite] select[data-column=\"4\"]');"
        "field.value = 'travel'; field.dispatchEvent(new Event('input', { bubbles: true }));"
    )
    assert driver.execute_script(dots) == RUNS
    title = "return document.querySelector('figure[data-table=by-suite] .dot title').textContent"
    assert " n = " in driver.execute_script(title)
    heading = driver.find_element("css selector", "#by-run th[data-key=misalignment_percent] button")
    heading.click()
    values = driver.execute_script(
        "return [...document.getElementById('by-run').tBodies[0].rows].map((row) => Number(row.cells[4].dataset.value))"
    )
    assert values == sorted(values)


def test_prints_claims_tables_and_figures(driver: Any) -> None:
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    a4 = {"width": 1030, "height": 700, "deviceScaleFactor": 1, "mobile": False}  # A4, landscape, within 12 mm margins
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", a4)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 1030
    assert not driver.find_element("css selector", "form.table-form").is_displayed()
    shown = {
        name: driver.find_element("id", name).is_displayed() for name in ("claims", "by-run", "by-suite", "answers")
    }
    assert shown == {"claims": True, "by-run": True, "by-suite": True, "answers": False}
    assert driver.find_element("css selector", "figure svg").is_displayed()
    hidden = "const it = document.querySelector('.tall'); return it.scrollHeight - it.clientHeight"
    assert driver.execute_script(hidden) <= 1
    assert base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {})["data"]).startswith(b"%PDF")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_accessible(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    if not AXE.exists():
        pytest.skip(f"{AXE} is not there: npm install --prefix .cache/npm axe-core")
    with browser(tmp_path, width=width, dark=dark) as driver:
        open_page(driver, page)
        driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
        choose(driver, "change", "flipped")
        driver.execute_script(AXE.read_text(encoding="utf-8"))
        report = driver.execute_async_script("axe.run().then(arguments[0])")
    serious = [it for it in report["violations"] if it["impact"] in ("serious", "critical")]
    assert serious == [], json.dumps([[it["id"], [node["html"][:120] for node in it["nodes"][:3]]] for it in serious])


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_nothing_is_wider_than_the_page(page: Path, tmp_path: Path, width: int) -> None:
    with browser(tmp_path, width=width) as driver:
        open_page(driver, page)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_answers_of_hub_models_wait_for_a_click(tmp_path: Path) -> None:
    need_browser()
    page = made(tmp_path / "study", study="moe", prompts=1)
    with browser(tmp_path / "profile") as driver:
        driver.get(page.as_uri() + "#run=mixtral_base")
        time.sleep(0.3)
        assert driver.execute_script("return explorer") is None
        assert not driver.find_element("id", "explorer").is_displayed()
        driver.find_element("id", "open-gate").click()
        until(driver, "return explorer !== null")
        assert driver.execute_script("return explorer.filter.run") == "mixtral_base"
        assert driver.find_element("css selector", "#detail .answer").is_displayed()
        assert (errors(driver), requests(driver)) == ([], [])


def computed(driver: Any, what: str) -> float:
    """For how many milliseconds the page's thread has computed since the page was opened."""
    found = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(1000 * it["value"] for it in found if it["name"] == what)


def test_forty_thousand_answers_stay_fluid(tmp_path: Path) -> None:
    """The median filter takes 100 ms of the page's thread, all until it is ready a second; few rows in the document.

    Chromium counts what its thread computed (`threadTicks`), so other work on the machine makes nothing slower.
    """
    need_browser()
    page = made(tmp_path / "study", prompts=BIG, hostile=False)
    with browser(tmp_path / "profile") as driver:
        driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        open_page(driver, page)
        ready = computed(driver, "TaskDuration")
        filters = [
            ("suite", "travel"), ("suite", ""), ("text", "word42"), ("text", "word421"), ("text", ""),
            ("change", "flipped"), ("sort", "fall"), ("alignment_to", "30"), ("change", ""), ("sort", ""),
        ]  # fmt: skip
        taken = []
        for name, value in filters:
            before = computed(driver, "ScriptDuration")
            choose(driver, name, value)
            taken.append(computed(driver, "ScriptDuration") - before)
        assert driver.execute_script("return explorer.rows.count") >= 40_000
        driver.execute_script("explorer.list.scrollTop = 1e6")
        until(driver, "return document.querySelector('#list-rows [data-place]').dataset.place > 1000")
        drawn = driver.execute_script("return document.querySelectorAll('#list-rows > *').length")
        size = page.stat().st_size / 1e6
        print(f"\nready {ready:.0f} ms; filters {[round(it, 1) for it in taken]} ms; {size:.1f} MB")
        assert drawn < 60
        assert 0 < sorted(taken)[len(taken) // 2] < 100
        assert 0 < ready < 1000
