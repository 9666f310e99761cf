"""A headless Chromium, driven by chromedriver.

``Browser.deep`` looks through shadow roots, which Panel and Bokeh put around every component.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
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


def start(profile: Path, width: int = 1280, height: int = 900) -> Browser | None:
    """Chromium with the profile of an empty folder; None where it or chromedriver is missing."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*_OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return Browser(webdriver.Chrome(options=options, service=Service(chromedriver)))
