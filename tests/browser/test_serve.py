"""The page of `paramgolf serve` in a browser, and OpenAI's client beside it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paramgolf.scoring.predictor import load
from tests.browser.conftest import HOSTILE
from tests.e2e import command

pytestmark = pytest.mark.slow
needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None and os.environ.get("CI") != "true",
    reason="needs paramgolf[ecosystem] (make test-slow)",
)


@pytest.fixture(scope="module")
def url(finished: Path) -> Iterator[str]:
    """Where the command serves a run; Ctrl-C must end it quietly."""
    process = command.start("serve", finished, "--port", "0", "--device", "cpu")
    assert process.stdout is not None
    page, endpoint = (process.stdout.readline().decode().split()[1] for _ in range(2))
    assert endpoint == page + "v1,"
    yield page
    process.send_signal(signal.SIGINT)
    code, _, stderr = command.finish(process)
    assert (code, stderr) == (130, "")


class Page:
    """The page in a window."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script("return " + script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def type(self, text: str, **values: Any) -> None:
        """Fill in the text, as if pasted, and the fields."""
        for name, value in {"prompt": text, **values}.items():
            field = self.find(f"#{name}")
            self.run("arguments[0].value = arguments[1]", field, str(value))
            self.run("arguments[0].dispatchEvent(new Event('input'))", field)

    def shown(self) -> str:
        return self.run("document.getElementById('passage').textContent")

    def status(self) -> str:
        return self.find("#status").text

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, (self.status(), self.shown())
            time.sleep(0.02)


@pytest.fixture
def page(driver: Any, url: str) -> Iterator[Page]:
    """The opened page; its console must be empty afterwards."""
    driver.get_log("browser")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    yield Page(driver, url)
    assert driver.get_log("browser") == []


def test_what_is_typed_is_coloured_by_its_bits(page: Page, finished: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    text = "The value of an expression. " + HOSTILE.replace("\n", "")
    page.find("#prompt").send_keys(text)
    page.until(lambda: page.status().startswith("typed: ") and "onload" in page.shown())
    predictor = load(finished / "model.bin", device="cpu")
    score = predictor.score(text, fixed=True)
    bits = score.bpb * score.bytes
    page.until(lambda: f"typed: {score.tokens} tokens, {bits:.1f} bits, " in page.status())
    assert page.status().endswith(f"{score.bpb:.2f} per byte")
    spans = page.driver.find_elements("css selector", "#passage .t")
    assert len(spans) == score.tokens
    levels = [int(span.get_attribute("class").split()[1][1:]) for span in spans]
    losses = predictor.losses(predictor.tokenizer.encode([text])[0], fixed=True).tolist()
    edges = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
    own = [nats / 0.6931471805599453 for nats in losses]
    assert levels == [sum(bits >= edge for edge in edges) for bits in own]
    tip = page.find("#tip")
    assert not tip.is_displayed()
    ActionChains(page.driver).move_to_element(spans[5]).perform()
    assert f", {own[5]:.2f} bits" in tip.text
    assert len(tip.find_elements("css selector", "li")) == 5
    page.run("document.querySelector('#passage [tabindex=\"0\"]').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert f", {own[1]:.2f} bits" in tip.text
    assert page.driver.switch_to.active_element.get_attribute("aria-describedby") == "tip"
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()


def test_the_text_is_continued_as_by_generate(page: Page, finished: Path) -> None:
    predictor = load(finished / "model.bin", device="cpu")
    expected = "".join(predictor.generate("The ", 60, 0.7, 0.9, 5))
    page.type("The ", temperature=0.7, top_p=0.9, max_tokens=60, seed=5)
    page.find("button[type=submit]").click()
    page.until(lambda: "written: 60 tokens" in page.status())
    spans = page.driver.find_elements("css selector", "#passage .drawn")
    assert len(spans) == 60
    symbols = str.maketrans({"\u21b5": "", "\u21e5": ""})
    assert page.shown().translate(symbols) == "The " + expected
    assert page.find("#stop").get_attribute("disabled")


def test_stop_ends_the_text_and_the_next_one_begins(page: Page) -> None:
    page.type("The ", temperature=0, max_tokens=2048)
    page.find("button[type=submit]").click()
    page.until(lambda: "drawn" in page.run("document.getElementById('passage').innerHTML"))
    page.find("#stop").click()
    page.until(lambda: page.status() == "Stopped")
    written = len(page.driver.find_elements("css selector", "#passage .drawn"))
    assert 0 < written < 2048
    page.type("A list", max_tokens=3)
    page.find("button[type=submit]").click()
    page.until(lambda: "written: 3 tokens" in page.status())


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_window_and_is_labelled(page: Page, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.run("document.documentElement.scrollWidth") == width
    assert page.run("[...document.querySelectorAll('input, textarea')].every(e => e.labels.length)")
    resources = page.run("performance.getEntriesByType('resource').map(e => e.name)")
    assert {Path(name).name for name in resources} == {"page.css", "page.js"}
    assert all(name.startswith(page.driver.current_url) for name in resources)
    assert page.run("getComputedStyle(document.querySelector('.q8')).backgroundColor") != ""


# OpenAI's client.


@pytest.fixture
def client(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=url + "v1", api_key="none", max_retries=0)


@needs_openai
def test_the_client_gets_the_text_of_generate(client: Any, finished: Path) -> None:
    (model,) = client.models.list().data
    assert model.id == "run"
    assert client.models.retrieve("run") == model
    asked = {"model": model.id, "prompt": "Return the", "temperature": 0, "max_tokens": 30}
    found = client.completions.create(**asked)
    done = subprocess.run(
        command.command("generate", finished, "--prompt", "Return the", "--temperature", "0",
                        "--max-tokens", "30", "--device", "cpu"),
        capture_output=True, check=True, env=command.ENVIRONMENT, timeout=command.TIMEOUT,
    )  # fmt: skip
    assert done.stdout.decode() == f"Return the{found.choices[0].text}\n"
    assert found.usage.prompt_tokens > 0
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == found.choices[0].text
    assert last.usage == found.usage
    best = client.completions.create(**asked, logprobs=5, echo=True, stop="\n").choices[0]
    assert best.text.startswith("Return the")
    assert "\n" not in best.text
    assert all(len(each) == 5 for each in best.logprobs.top_logprobs)
    assert len(best.logprobs.tokens) == len(best.logprobs.token_logprobs)


@needs_openai
def test_the_client_raises_its_own_errors(client: Any) -> None:
    import openai

    asked: dict[str, Any] = {"model": "run", "prompt": "x"}
    with pytest.raises(openai.BadRequestError, match="n = 2 is not supported") as raised:
        client.completions.create(**asked, n=2)
    assert raised.value.param == "n"
    with pytest.raises(openai.NotFoundError, match="this server has 'run'"):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.BadRequestError, match="unknown parameter 'min_p'"):
        client.completions.create(**asked, extra_body={"min_p": 0.1})


@needs_openai
def test_a_stream_that_is_closed_frees_the_model(client: Any) -> None:
    stream = client.completions.create(
        model="run", prompt="The", temperature=0, max_tokens=2048, stream=True
    )
    next(iter(stream))
    stream.close()
    assert client.completions.create(model="run", prompt="The", max_tokens=1, timeout=20)
