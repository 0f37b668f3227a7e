"""The live page in a real headless Chromium: it shows what `/v1/status` says, and its console stays clean."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.simulator import Simulator
from tests.e2e.service import Deployment, running, say, wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(90),
    pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs chromedriver"),
]


class Browser:
    """A small WebDriver client: a session of one headless Chromium."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1200,1400",
        ]
        options = {"goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self._session = f"/session/{answer['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)["value"]

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        return self._call("POST", f"{self._session}/execute/sync", {"script": f"return {script}", "args": []})

    def text(self, css: str) -> str:
        return str(self.run(f"(document.querySelector({css!r}) || {{}}).innerText || ''"))

    def console(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return found

    def dark(self, on: bool) -> None:
        params = {"features": [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]}
        body = {"cmd": "Emulation.setEmulatedMedia", "params": params}
        self._call("POST", f"{self._session}/goog/cdp/execute", body)

    def width(self, pixels: int) -> None:
        params = {"width": pixels, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self._call(
            "POST",
            f"{self._session}/goog/cdp/execute",
            {"cmd": "Emulation.setDeviceMetricsOverride", "params": params},
        )

    def close(self) -> None:
        self._call("DELETE", self._session)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = 0
    for line in process.stdout:
        if found := re.search(r"started successfully on port (\d+)", line):
            port = int(found[1])
            break
    opened = Browser(port)
    yield opened
    opened.close()
    process.terminate()
    process.communicate()


def test_the_page_shows_what_status_says(deployment: Deployment, simulator: Simulator, browser: Browser) -> None:
    """Figures, budgets, alerts, the turn in flight, also with a hostile session name's worth of markup in ids."""
    service = deployment.start("--no-warden", capacity={"sessions": 2}, tenants={"default": {"daily_tokens": 50_000}})
    for n in range(2):
        service.turn(f"s{n}", say(text="x"), user="<b>ann</b>")
    with running(lambda: service.turn("running", say(hold="page", text="x"))):
        simulator.wait_for(held=1)
        browser.open(service.url)
        wait_until(lambda: browser.text("#busy").startswith("1"), "the figures")
        wait_until(lambda: "sessions" in browser.text("#alerts"), "the alert")
        status = service.status()
        shown = ("busy", "resident", "budgets", "turns", "ready", "states-legend", "process-facts", "alerts")
        page = {f"#{name}": browser.text(f"#{name}") for name in shown}
        simulator.release("page")
    errors = [entry for entry in browser.console() if entry["level"] in ("SEVERE", "WARNING")]

    assert page["#busy"].split()[0] == str(status["busy"])
    assert page["#resident"].split()[0] == str(status["pool"]["resident"])
    assert "default/running" in page["#turns"]
    assert "default/<b>ann</b>" in page["#budgets"]
    assert "50 k" in page["#budgets"]
    assert page["#ready"] == "ready"
    assert "sessions: 3 is past the alert line of 1.7 (limit 2)." in page["#alerts"]
    facts = page["#process-facts"].splitlines()
    assert facts[facts.index("Child processes") + 1] == "none"
    assert "busy 1" in page["#states-legend"]
    assert errors == []


def test_the_page_asks_for_a_key_where_keys_are_needed(deployment: Deployment, browser: Browser) -> None:
    """Nothing is shown without one; with it the tenant's figures are. The 401 is the only thing in the console."""
    service = deployment.start("--no-warden", tenants=deployment.tenants("acme"))
    service.key = deployment.keys["acme"]
    browser.open(service.url)
    wait_until(lambda: browser.text("#ready") == "locked", "the lock")
    hidden = browser.run("document.querySelector('#board').hidden")

    browser.run(f"document.querySelector('#key').value = {service.key!r}")
    browser.run("document.querySelector('#keyform button').click()")
    wait_until(lambda: browser.text("#ready") == "ready", "the figures")

    assert hidden is True
    assert service.key not in str(browser.run("document.documentElement.outerHTML"))


def test_the_page_is_readable_in_dark_and_light_and_on_a_telephone(
    deployment: Deployment, simulator: Simulator, browser: Browser
) -> None:
    """Ink stands out from its card in both, and nothing is wider than the window, however long the names are."""
    service = deployment.start("--no-warden")
    browser.width(400)
    name = "a-session-with-a-name-that-is-long-" + "x" * 60
    with running(lambda: service.turn(name, say(hold="page", text="x"), user="user-" + "y" * 60)):
        simulator.wait_for(held=1)
        browser.open(service.url)
        wait_until(lambda: name in browser.text("#turns"), "the figures")
        narrow = browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        simulator.release("page")
    browser.width(1200)
    ratios, faint_ratios = [], []
    for on in (False, True):
        browser.dark(on)
        wait_until(
            partial(browser.run, f"matchMedia('(prefers-color-scheme: dark)').matches === {json.dumps(on)}"),
            "the scheme",
        )
        ink, card, faint = (
            browser.run(f"getComputedStyle(document.querySelector('{css}')).{name}")
            for css, name in ((".card", "color"), (".card", "backgroundColor"), (".facts dt", "color"))
        )
        ratios.append((_contrast(ink, card), card))
        faint_ratios.append(_contrast(faint, card))

    wide = browser.run("document.documentElement.scrollWidth <= window.innerWidth")

    assert narrow is True
    assert all(ratio > 7 for ratio, _ in ratios)
    assert all(ratio > 4.5 for ratio in faint_ratios)
    assert ratios[0][1] != ratios[1][1]
    assert wide is True


def _contrast(first: str, second: str) -> float:
    """WCAG's contrast of two `rgb(...)` colours."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
