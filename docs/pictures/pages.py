"""Takes the README's pictures of the report and of the explorer, with headless Chromium.

python docs/pictures/pages.py demo    # the folder of ``gatokit demo``; writes report.png and explorer.png beside this
"""

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "tests" / "browser"))

from chromium import Browser, start  # noqa: E402

WIDTH = 1280
COMMAND = [sys.executable, "-m", "gatokit.cli.main", "inspect"]
CHOOSE = """
const select = found('select').find(
  (one) => one.closest('.bk-input-group').querySelector('label').textContent.trim() === arguments[0]);
select.value = arguments[1];
select.dispatchEvent(new Event('change', {bubbles: true}));
"""


def take(browser: Browser, most: int, file: Path) -> None:
    """Writes the page, or so much of its height."""
    height = min(browser.run("return document.documentElement.scrollHeight"), most)
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
    shot = {"captureBeyondViewport": True, "clip": clip}
    file.write_bytes(base64.b64decode(browser.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]))
    print(f"wrote {file}, {file.stat().st_size / 1e3:.0f} kB")


def take_report(browser: Browser, built: Path, folder: Path) -> None:
    """The report of a build, from its datasets to its tasks."""
    page = folder / "report.html"
    subprocess.run([*COMMAND, str(built), "--html", str(page)], check=True, stdout=subprocess.DEVNULL)
    browser.open(page)
    take(browser, 1080, HERE / "report.png")


def take_explorer(browser: Browser, built: Path) -> None:
    """The explorer with an episode of Breakout opened in its middle and two selected."""
    command = [*COMMAND, str(built), "--serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        browser.driver.get(json.loads(server.stdout.readline())["address"])
        browser.wait_deep("return found('table.fixed tbody tr').length > 0")
        browser.deep(CHOOSE, "dataset", "atari")
        browser.wait_deep("return found('table.fixed tbody tr').every((row) => row.textContent.includes('Breakout'))")
        browser.deep(CHOOSE, "kept", "kept")
        browser.wait_deep("return found('.words.counts p').some((line) => line.textContent.startsWith('4 rows'))")
        for place in (0, 2):
            browser.deep("found('table.fixed tbody input')[arguments[0]].click()", place)
        browser.deep("found('table.fixed tbody tr')[0].click()")
        browser.wait_deep("return found('.player[data-step]').length && found('canvas').length > 1")
        browser.deep(
            "const slider = found('.player input[type=range]')[0];"
            " slider.value = 168; slider.dispatchEvent(new Event('input'))"
        )
        browser.wait_deep("return found('.player[data-step=\"168\"]').length === 1")
        browser.wait_deep("return found('.images img').every((image) => image.complete)")
        browser.run("window.scrollTo(0, 0); document.activeElement.blur()")
        take(browser, 1500, HERE / "explorer.png")
        server.terminate()


def main() -> None:
    """Takes both."""
    built = Path(sys.argv[1]) / "built"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "profile").mkdir()
        browser = start(Path(folder) / "profile", WIDTH)
        if browser is None:
            sys.exit("no Chromium: apt-get install chromium chromium-driver")
        browser.show_as(WIDTH, "light")
        take_report(browser, built, Path(folder))
        take_explorer(browser, built)
        browser.driver.quit()


if __name__ == "__main__":
    main()
