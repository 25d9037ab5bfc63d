"""Opens the reports in headless Chromium; skipped where there is none."""

import base64
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from launch.report import write_report
from launch.report.comparison import write_comparison
from launch.report.scale import write_scale_report
from tests.launch.scaled import whole

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
WANTED = "TRIMLINE_BROWSER"
"""A variable that CI sets once it has installed a browser: the tests may not be skipped then."""

webdriver: Any = None
if importlib.util.find_spec("selenium"):
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    """A headless browser; where there is none the tests are skipped, or fail where CI says that there is one."""
    refuse = pytest.fail if os.environ.get("CI") and os.environ.get(WANTED) else pytest.skip
    if not (CHROMIUM and DRIVER):
        refuse("chromium and chromedriver are not on PATH (apt-get install chromium-driver)")
    if webdriver is None:
        refuse("selenium is not installed (pip install selenium)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory() as profile:
        # Containers often run as root and give little shared memory.
        flags = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
        for flag in (*flags, f"--user-data-dir={profile}", "--window-size=1200,900"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
        yield driver
        driver.quit()


@pytest.fixture
def page(chrome: Any, reported_run: Path) -> Any:
    return open_page(chrome, reported_run)


def open_page(chrome: Any, run: Path) -> Any:
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    chrome.set_window_size(1200, 900)
    for kind in ("browser", "performance"):
        chrome.get_log(kind)  # what earlier pages left
    chrome.get("about:blank")  # or a busy machine may take the page before for the one that is asked for
    url = (run / "report.html").as_uri()
    chrome.get(url)
    there = "return document.readyState === 'complete' && location.href === arguments[0]"
    WebDriverWait(chrome, 30).until(lambda page: page.execute_script(there, url))
    return chrome


def find(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def texts(page: Any, selector: str) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent.trim())", selector
    )


def requests(page: Any) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


@pytest.mark.parametrize("run", ["reported_run", "unfinished_run"])
def test_no_console_messages_and_no_requests_beside_the_file_itself(
    chrome: Any, run: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(run)
    write_report(folder)
    page = open_page(chrome, folder)
    for button in page.find_elements("css selector", "button"):
        page.execute_script("arguments[0].click()", button)
    assert page.get_log("browser") == []
    outside = [url for url in requests(page) if not url.startswith("data:")]
    assert [unquote(url) for url in outside] == [(folder / "report.html").as_uri()]


def test_every_picture_loads(page: Any) -> None:
    widths = page.execute_async_script("""
        const done = arguments[arguments.length - 1];
        const sources = [...document.images].map((image) => image.src)
          .concat([...document.querySelectorAll("svg image")].map((image) => image.href.baseVal));
        Promise.all(sources.map(async (source) => {
          const image = new Image();
          image.src = source;
          await image.decode();
          return image.naturalWidth;
        })).then(done, (error) => done(String(error)));
    """)
    assert widths == [96] * 6


def test_every_reference_inside_the_page_has_its_target(page: Any) -> None:
    lost = page.execute_script("""
        const href = (e) => e.getAttribute("xlink:href") ?? e.getAttribute("href");
        const targets = [...document.querySelectorAll("use, a[href^='#']")].map(href);
        return targets.filter((target) => !document.getElementById(target.slice(1)));
    """)
    ids = page.execute_script("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert lost == []
    assert len(ids) == len(set(ids))


def test_figures_are_drawn_at_their_size(page: Any) -> None:
    sizes = page.execute_script(
        "return [...document.querySelectorAll('.drawing svg')].map((e) => [e.clientWidth, e.clientHeight])"
    )
    assert len(sizes) == 7
    assert all(width > 400 and height > 150 for width, height in sizes)


def test_buttons_and_slider_step_through_the_layers(page: Any) -> None:
    picture = find(page, ".picture")
    picture.find_element("css selector", "button.model[data-model='0']").click()
    slider, back, on = (picture.find_element("css selector", name) for name in (".step", ".back", ".on"))
    state = picture.find_element("css selector", ".step-name")
    count = picture.find_element("css selector", ".panel:not([hidden]) .count")
    fresh = picture.find_element("css selector", ".panel:not([hidden]) path.fresh")

    assert state.text == "vision layer 5 (6 of 6)" and not on.is_enabled()
    assert count.text == "9 of 64 patches, the others merged into 2 · 10 of 10 tokens"
    back.click()
    assert state.text == "vision layer 4 (5 of 6)" and on.is_enabled()
    assert count.text.startswith("19 of 64 patches")
    slider.send_keys("\ue011")  # Home
    assert state.text == "input (0 of 6)" and not back.is_enabled()
    assert count.text.startswith("64 of 64 patches") and fresh.get_attribute("d") == ""
    on.click()
    assert state.text == "vision layer 0 (1 of 6)" and fresh.get_attribute("d") != ""


def test_models_are_switched_and_trimmed_tokens_struck_out(page: Any) -> None:
    picture = find(page, ".picture")
    shown = [panel for panel in picture.find_elements("css selector", ".panel") if panel.is_displayed()]
    # The most trimmed one is open, in each picture.
    assert {panel.get_attribute("data-model") for panel in shown} == {"1"} and len(shown) == 2
    assert [button.text for button in page.find_elements("css selector", "[aria-pressed='true']")] == ["2.0x"] * 2
    said = picture.find_element("css selector", ".common:not([hidden])")
    assert said.text.startswith("2.0x: of the patches that one of two sentences keeps in the end, both keep ")
    picture.find_element("css selector", "button.model[data-model='0']").click()
    assert not said.is_displayed()
    shown = [panel for panel in picture.find_elements("css selector", ".panel") if panel.is_displayed()]
    assert {panel.get_attribute("data-model") for panel in shown} == {"0"} and len(shown) == 2
    picture.find_element("css selector", "button.model[data-model='1']").click()
    shown = [panel for panel in picture.find_elements("css selector", ".panel") if panel.is_displayed()]
    assert {panel.get_attribute("data-model") for panel in shown} == {"1"} and len(shown) == 2
    assert picture.find_element("css selector", ".step-name").text == "fusion layer 2 (9 of 9)"
    struck = [token.text for token in shown[0].find_elements("css selector", ".tokens .dropped")]
    assert struck == ["the", "top", "[SEP]"]
    picture.find_element("css selector", ".back").click()
    assert len(shown[0].find_elements("css selector", ".tokens .dropped")) == 2


def test_tables_sort_by_clicking_both_ways(page: Any) -> None:
    column = "#summary div.scroll:nth-of-type(1) tbody td:nth-child(3)"
    head = page.find_elements("css selector", "#summary table")[0].find_elements("css selector", "th button")[2]

    def values() -> list[float]:
        return [float(text.split()[0]) for text in texts(page, column)]

    before = values()
    head.click()
    assert values() == sorted(before) != before
    head.click()
    assert values() == sorted(before, reverse=True)


def test_cells_without_a_value_stay_last(page: Any) -> None:
    steps = find(page, "#stages th:nth-child(6) button")
    column = "#stages tbody td:nth-child(6)"
    steps.click()
    assert texts(page, column) == ["80", "80", "300", *["–"] * 6]  # noqa: RUF001
    steps.click()
    assert texts(page, column) == ["300", "80", "80", *["–"] * 6]  # noqa: RUF001


def test_the_numbers_to_download_are_those_in_the_files(page: Any, reported_run: Path) -> None:
    links = page.find_elements("css selector", "a[download]")
    assert len(links) == 7
    for link in links:
        held = base64.b64decode(link.get_attribute("href").split(",")[1])
        assert held == (reported_run / "figures" / link.get_attribute("download")).read_bytes()


def test_every_table_sorts_by_every_heading(page: Any) -> None:
    rows = "return [...document.querySelectorAll('table.sortable')].map((t) => t.tBodies[0].rows.length)"
    before = page.execute_script(rows)
    assert len(before) >= 7
    for button in page.find_elements("css selector", "th button"):
        page.execute_script("arguments[0].click()", button)
        head = page.execute_script("return arguments[0].closest('th').getAttribute('aria-sort')", button)
        assert head == "ascending"
    assert page.execute_script(rows) == before


def test_the_cheapest_and_the_dearest_instances_are_seen(page: Any) -> None:
    shown = page.find_elements("css selector", ".extremes figure")
    assert [each.is_displayed() for each in shown] == [True, True]
    assert [each.find_element("css selector", "img").size["width"] > 90 for each in shown] == [True, True]
    assert "the dearest one is <red>" in shown[1].text and "1.22 of the mean" in shown[1].text


def test_the_links_of_the_head_lead_to_sections(page: Any) -> None:
    links = page.find_elements("css selector", "nav a")
    assert [link.text for link in links] == [
        "Summary", "Accuracy and cost", "Training curves", "Surviving patches", "Single instances", "Analyses", "Data",
        "Stages", "Faults and restarts", "Reproduce",
    ]  # fmt: skip
    for link in links:
        link.click()
        top = page.execute_script("return document.querySelector(location.hash).getBoundingClientRect().top")
        bottom = page.execute_script("return scrollY + innerHeight >= document.documentElement.scrollHeight - 1")
        assert abs(top) < 2 or bottom


def test_a_comparison_opens_without_messages_or_requests_and_its_tables_sort(chrome: Any, comparison: Path) -> None:
    write_comparison(comparison)
    page = open_page(chrome, comparison)
    tables = page.find_elements("css selector", "table.sortable")
    assert len(tables) == 7
    heads = page.find_elements("css selector", "#summary table:first-of-type th button")
    column = "#summary h3:first-of-type + .scroll td:nth-child(3)"
    before = [float(text.split()[0]) for text in texts(page, column)]
    heads[2].click()
    assert [float(text.split()[0]) for text in texts(page, column)] == sorted(before) != before
    for button in page.find_elements("css selector", "button"):
        page.execute_script("arguments[0].click()", button)
    assert page.get_log("browser") == []
    outside = [url for url in requests(page) if not url.startswith("data:")]
    assert [unquote(url) for url in outside] == [(comparison / "report.html").as_uri()]
    page.find_element("css selector", "#runs a").click()
    assert "of the run" in page.find_element("css selector", "body").text


def test_a_scale_experiment_opens_without_messages_or_requests_and_its_table_sorts(chrome: Any, tmp_path: Path) -> None:
    write_scale_report(tmp_path, whole())
    page = open_page(chrome, tmp_path)
    heads = texts(page, "#trials thead th")
    at = heads.index("samples/s") + 1
    before = texts(page, f"#trials tbody td:nth-child({at})")
    page.find_elements("css selector", "#trials th button")[at - 1].click()
    after = texts(page, f"#trials tbody td:nth-child({at})")
    assert after == ["10", "13", "–"] and sorted(after) == sorted(before)  # noqa: RUF001
    for button in page.find_elements("css selector", "button"):
        page.execute_script("arguments[0].click()", button)
    sizes = page.execute_script(
        "return [...document.querySelectorAll('.drawing svg')].map((e) => [e.clientWidth, e.clientHeight])"
    )
    assert len(sizes) == 9 and all(width > 300 and height > 100 for width, height in sizes)
    assert page.get_log("browser") == []
    outside = [url for url in requests(page) if not url.startswith("data:")]
    assert [unquote(url) for url in outside] == [(tmp_path / "report.html").as_uri()]


def test_the_configuration_unfolds(page: Any) -> None:
    config = find(page, "#config pre")
    assert not config.is_displayed()
    find(page, "#config summary").click()
    assert config.is_displayed() and "targets" in config.text


@pytest.mark.parametrize("width", [420, 1200])
def test_only_tables_scroll_sideways(page: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    root = "document.documentElement"
    assert page.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_tables_of_the_summary_fit_a_screen_of_1280(chrome: Any, finished_run: Path) -> None:
    rows = json.loads((finished_run / "results.json").read_text())
    more = [{**row, "metric": "R@10", "value": 41.0} for row in rows[:1]]
    more += [{**row, "target": 2.0, "method": "smarttrim", "full_gmacs": 0.03, "unpruned_gmacs": 0.04, "wanted": 2.0,
              "reached": 1.9, "unit": "x"} for row in (*rows[:6], *more)]  # fmt: skip
    (finished_run / "results.json").write_text(json.dumps([*rows[:6], *more, *rows[6:]]))
    write_report(finished_run)
    page = open_page(chrome, finished_run)
    page.set_window_size(1280, 900)
    wide = "return [...document.querySelectorAll('#summary .scroll')].map((e) => [e.scrollWidth, e.clientWidth])"
    sizes = page.execute_script(wide)
    assert len(sizes) >= 2 and all(content <= room for content, room in sizes)
    assert len(page.find_elements("css selector", "#summary table:first-of-type thead th")) >= 12


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_figures_take_the_ink_of_the_page(page: Any, scheme: str, dark: bool) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    paper, ink = page.execute_script("""
        const style = (selector) => getComputedStyle(document.querySelector(selector));
        return [style("body").backgroundColor, style(".drawing svg text").fill];
    """)
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (paper, ink)]
    assert (brightness[0] < brightness[1]) == dark


def test_print_shows_every_model_and_no_controls(page: Any) -> None:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    panels = page.find_elements("css selector", ".panel")
    assert len(panels) == 8 and all(panel.is_displayed() for panel in panels)
    assert not find(page, ".picture .on").is_displayed()
