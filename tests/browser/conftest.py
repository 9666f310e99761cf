"""A headless Chromium, driven by chromedriver; where one of them is missing, tests that need them are skipped.

``Browser.find`` and what rests on it look through shadow roots, which Panel and Bokeh put around every component.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_FIND = """
const look = (root, selector) => [
  ...root.querySelectorAll(selector),
  ...[...root.querySelectorAll('*')].filter((one) => one.shadowRoot).flatMap((one) => look(one.shadowRoot, selector)),
];
const within = (start, selectors) =>
  selectors.reduce((roots, selector) => roots.flatMap((root) => [
    ...look(root, selector), ...(root.shadowRoot ? look(root.shadowRoot, selector) : [])]), [start]);
const found = (...selectors) => within(document, selectors);
"""
"""``found(selector, …)``: what the last selector finds below what those before it find, shadow roots included."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Chromium and chromedriver; skipped where they are missing")


@dataclass
class Browser:
    """Chromium, and what pages asked of the network and said in the console since they were opened."""

    driver: webdriver.Chrome

    def open(self, page: Path) -> None:
        """Opens a report and waits until it has drawn itself."""
        self.driver.get("about:blank")
        self.messages()
        self.requests()
        self.driver.get(page.as_uri())
        self.wait("return document.body.dataset.ready === 'yes'")

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> None:
        """Waits until a script's value is true."""
        WebDriverWait(self.driver, 30).until(lambda driver: driver.execute_script(script, *arguments))

    def deep(self, script: str, *arguments: Any) -> Any:
        """The value of a script that may call ``found(selector, …)``, which looks through shadow roots."""
        return self.run(_FIND + script, *arguments)

    def wait_deep(self, script: str, *arguments: Any) -> None:
        """Waits until such a script's value is true."""
        self.wait(_FIND + script, *arguments)

    def messages(self) -> list[str]:
        """Lines of the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def show_as(self, width: int, scheme: str) -> None:
        """Another window, light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium with an empty profile."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*_OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1280,900"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield Browser(driver)
    driver.quit()


@pytest.fixture
def report(tmp_path: Path) -> Callable[[Path], Path]:
    """``report(directory) -> page`` as ``gatokit inspect --html`` writes it."""
    from gatokit.cli.main import main

    def write(directory: Path) -> Path:
        assert main(["inspect", str(directory), "--html", str(tmp_path / "report.html")]) == 0
        return tmp_path / "report.html"

    return write
