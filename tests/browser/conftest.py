"""A headless Chromium; where it or chromedriver is missing, tests that need it are skipped."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chromium import Browser, start


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Chromium and chromedriver; skipped where they are missing")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium with an empty profile."""
    started = start(tmp_path_factory.mktemp("profile"))
    if started is None:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    yield started
    started.driver.quit()


@pytest.fixture
def report(tmp_path: Path) -> Callable[[Path], Path]:
    """``report(directory) -> page`` as ``gatokit inspect --html`` writes it."""
    from gatokit.cli.main import main

    def write(directory: Path) -> Path:
        assert main(["inspect", str(directory), "--html", str(tmp_path / "report.html")]) == 0
        return tmp_path / "report.html"

    return write
