"""The report in a browser, from a run whose text contains markup."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import HOSTILE
from tests.e2e import command

pytestmark = pytest.mark.slow

DESKTOP, PHONE = 1280, 390


@pytest.fixture(scope="session")
def report(finished: Path) -> Path:
    """The report of an audited run."""
    result = command.run("audit", finished, "--device", "cpu", "--positions", "1")
    assert result.code == 0, result.stdout + result.stderr
    result = command.run("report", finished)
    assert result.code == 0, result.stderr
    return finished / "report.html"


class Browser:
    """The page in a window."""

    def __init__(self, driver: Any, report: Path) -> None:
        self.driver, self._report = driver, report

    def open(self, width: int = DESKTOP, scheme: str = "light", media: str = "") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", media=media, features=features)
        size = {"width": width, "height": 800, "deviceScaleFactor": 1}
        self.command("Emulation.setDeviceMetricsOverride", **size, mobile=width == PHONE)
        self.driver.get(self._report.resolve().as_uri())

    def command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script("return " + script, *arguments)

    def style(self, selector: str, name: str) -> str:
        script = "getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return self.run(script, selector, name)

    def tokens(self) -> list[Any]:
        return self.driver.find_elements("css selector", ".passage .t")

    def tip(self) -> Any:
        return self.driver.find_element("id", "tip")


@pytest.fixture
def browser(driver: Any, report: Path) -> Iterator[Browser]:
    """The opened page; its console must be empty afterwards."""
    driver.get_log("browser")
    browser = Browser(driver, report)
    browser.open()
    yield browser
    assert driver.get_log("browser") == []


def check_tip(browser: Browser, number: int) -> None:
    """Check that the tooltip shows the page's data on a token."""
    data = browser.run("JSON.parse(document.getElementById('data').textContent)")
    piece, bits, share, rank, best = data["tokens"][number]
    tip = browser.tip()
    assert tip.is_displayed()
    assert tip.find_element("css selector", ".piece").text == data["pieces"][piece][0]
    said = tip.find_element("css selector", ".probability").text
    assert said.endswith(f", {bits:.2f} bits")
    shown = said.removeprefix("probability ").split(" %")[0]
    if shown[0] not in "<>":
        assert float(shown) == pytest.approx(100 * share, rel=0.06)
    assert (tip.find_element("css selector", ".facts").text == "the most likely token") == (
        rank == 1
    )
    rows = tip.find_elements("css selector", "li")
    assert len(rows) == 5
    widths = [row.find_element("css selector", "i").size["width"] for row in rows]
    assert widths == sorted(widths, reverse=True)
    for row, (other, _) in zip(rows, best, strict=True):
        assert row.text.startswith(data["pieces"][other][0])
        assert ("hit" in row.get_attribute("class")) == (other == piece)
    box = browser.run("document.getElementById('tip').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["top"] >= 0
    assert box["right"] <= browser.run("innerWidth")
    assert box["bottom"] <= browser.run("innerHeight")


def test_nothing_is_fetched_and_no_text_is_executed(browser: Browser, report: Path) -> None:
    browser.driver.get_log("performance")
    browser.open()
    messages = [json.loads(entry["message"])["message"] for entry in
                browser.driver.get_log("performance")]  # fmt: skip
    urls = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in urls if not url.startswith("data:")} == {report.resolve().as_uri()}
    assert browser.run("document.images.length") == 0
    assert browser.run("document.scripts.length") == 2
    text = browser.run("document.getElementById('passage').textContent")
    assert HOSTILE[: HOSTILE.index("!")] in text  # which is a byte there
    assert report.stat().st_size < 3_000_000


def test_pointing_at_a_token_shows_its_prediction(browser: Browser) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    assert not browser.tip().is_displayed()
    tokens = browser.tokens()
    assert len(tokens) > 300
    for number in (40, 3, 200, len(tokens) - 1):
        if not tokens[number].text.strip():
            number -= 1
        ActionChains(browser.driver).move_to_element(tokens[number]).perform()
        check_tip(browser, number)
    heading = browser.driver.find_element("css selector", "#text h2")
    ActionChains(browser.driver).move_to_element(heading).perform()
    assert not browser.tip().is_displayed()


def test_the_keyboard_reaches_every_token(browser: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    assert browser.run("document.querySelectorAll('.passage [tabindex=\"0\"]').length") == 1
    browser.run("document.querySelector('.passage [tabindex=\"0\"]').focus()")
    check_tip(browser, 0)

    def press(key: str) -> None:
        browser.driver.switch_to.active_element.send_keys(key)

    for key, number in (
        (Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_DOWN, 12), (Keys.ARROW_LEFT, 11),
        (Keys.END, len(browser.tokens()) - 1), (Keys.HOME, 0), (Keys.ARROW_LEFT, 0),
    ):  # fmt: skip
        press(key)
        check_tip(browser, number)
    active = browser.driver.switch_to.active_element
    assert active.get_attribute("aria-describedby") == "tip"
    press(Keys.ESCAPE)
    assert not browser.tip().is_displayed()


def test_tapping_a_token_on_a_phone_shows_its_prediction(browser: Browser) -> None:
    browser.open(PHONE)
    token = browser.tokens()[30]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", token)
    browser.command("Emulation.setTouchEmulationEnabled", enabled=True)
    box = browser.run("arguments[0].getClientRects()[0].toJSON()", token)
    point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    browser.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
    browser.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.command("Emulation.setTouchEmulationEnabled", enabled=False)
    check_tip(browser, 30)


def luminance(color: str) -> float:
    """Return the relative luminance (WCAG 2) of "rgb(...)"."""
    parts = [float(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2), 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_legible(browser: Browser, scheme: str) -> None:
    browser.open(scheme=scheme)
    paper, ink = browser.style("body", "backgroundColor"), browser.style("body", "color")
    assert (luminance(paper) > 0.8) == (scheme == "light")
    assert (luminance(paper) < 0.05) == (scheme == "dark")
    assert contrast(paper, ink) > 12
    assert contrast(paper, browser.style(".caption", "color")) > 4.5
    levels = [browser.style(f".legend .q{level}", "backgroundColor") for level in range(1, 9)]
    assert all(contrast(ink, level) >= 4.5 for level in levels)
    # Monotonic from pale to strong, also for those who do not see the colours.
    lights = [luminance(level) for level in levels]
    assert lights == sorted(lights, reverse=scheme == "light")
    assert contrast(paper, browser.style(".area span", "color")) > 4.5
    assert contrast(paper, browser.style(".area path", "stroke")) > 3


@pytest.mark.parametrize("width", [PHONE, 768, DESKTOP])
def test_a_page_and_its_charts_fit_the_window(browser: Browser, width: int) -> None:
    browser.open(width)
    assert browser.run("document.documentElement.scrollWidth") == width
    charts = "main :is(.chart, .waterfall, .bars)"
    assert browser.run(f"document.querySelectorAll('{charts}').length") == 13
    texts = browser.run(
        f"[...document.querySelectorAll('{charts} :is(span, small, .name, .y-title, .x-title)')]"
        ".filter(e => e.textContent.trim()).map(e => [e.getBoundingClientRect().toJSON(),"
        " parseFloat(getComputedStyle(e).fontSize), e.textContent])"
    )
    assert len(texts) > 100
    for box, font_size, text in texts:
        assert 0 <= box["left"] <= box["right"] <= width, text
        assert font_size >= 10, text
    boxes = browser.run(
        "[...document.querySelectorAll('main :is(p, h2, h3, li, code, button, blockquote, dd)')]"
        ".filter(e => e.checkVisibility() && !e.closest('.scroll'))"
        ".map(e => [e.getBoundingClientRect().toJSON(), e.scrollWidth - e.clientWidth,"
        " getComputedStyle(e).display == 'inline', e.textContent])"
    )
    assert len(boxes) > 50
    for box, hidden, inline, text in boxes:
        assert 0 <= box["left"] <= box["right"] <= width, text
        assert inline or hidden <= 0, text
    fonts = browser.run(
        f"[...document.querySelectorAll('{charts} *')].map(e => getComputedStyle(e).fontFamily)"
    )
    assert set(fonts) == {browser.style("body", "fontFamily")}
    sizes = browser.run(
        "[...document.querySelectorAll('.area')].map(e => [e.offsetWidth, e.offsetHeight])"
    )
    assert all(width >= 100 and height >= 50 for width, height in sizes)


def test_a_command_is_copied(browser: Browser) -> None:
    buttons = browser.driver.find_elements("css selector", ".commands button")
    assert [button.text for button in buttons] == ["Copy"] * 3
    commands = browser.driver.find_elements("css selector", ".commands code")
    buttons[1].click()
    assert buttons[1].text == "Copied"
    assert browser.run("getSelection().toString()") == commands[1].text
    assert commands[1].text.startswith("paramgolf score /")


def test_print_is_light_and_without_tooltips(browser: Browser) -> None:
    browser.open(scheme="dark", media="print")
    assert luminance(browser.style("body", "backgroundColor")) > 0.9
    assert luminance(browser.style("body", "color")) < 0.05
    browser.run("document.querySelector('.passage [tabindex=\"0\"]').focus()")
    assert not browser.tip().is_displayed()
    assert browser.style("nav", "display") == "none"
    assert len(browser.command("Page.printToPDF", printBackground=True)["data"]) > 50_000


def test_without_scripts_the_tokens_are_coloured(browser: Browser) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open()
        document = browser.command("DOM.getDocument")["root"]["nodeId"]
        found = browser.command("DOM.querySelectorAll", nodeId=document, selector=".passage .t")
        assert len(found["nodeIds"]) > 300
        note = browser.command("DOM.querySelector", nodeId=document, selector="noscript")
        html = browser.command("DOM.getOuterHTML", nodeId=note["nodeId"])["outerHTML"]
        assert "With JavaScript" in html
        browser.command("DOM.enable")
        browser.command("CSS.enable")
        strong = browser.command(
            "DOM.querySelector", nodeId=document, selector=".passage .q6, .passage .q5"
        )
        styles = browser.command("CSS.getComputedStyleForNode", nodeId=strong["nodeId"])
        colors = {s["name"]: s["value"] for s in styles["computedStyle"]}
        assert luminance(colors["background-color"]) < 0.8
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)
