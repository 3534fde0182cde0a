"""The page in a real browser: it opens without a complaint or a request, fits a telephone, and prints.

Chromium is driven over its debugging pipe, which needs nothing but the browser. With `SECATEUR_SCREENSHOTS=folder` the
pictures that are taken here are kept, to be looked at.
"""

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secateur.report import RunRecord, write

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or os.name != "posix", reason="no Chromium here; on Debian or Ubuntu: apt-get install chromium"
)


class Browser:
    """A headless Chromium with one page, and everything that it reported."""

    def __init__(self, profile: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._answered = b""
        self._calls = 0
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # Chromium reads commands from file descriptor 3 and answers on 4, each message ended by a zero byte.
        pipes = f'exec "$0" "$@" 3</dev/fd/{to_read} 4>/dev/fd/{to_write}'
        flags = [
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
        ]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", *(["--no-sandbox"] * (os.geteuid() == 0))]
        self._process = subprocess.Popen(
            ["sh", "-c", pipes, str(CHROMIUM), *flags, "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        session = {"sessionId": self._session} if self._session else {}
        command = {"id": self._calls, "method": method, "params": parameters, **session}
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._calls:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    def open(self, path: Path, width: int, *, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        loaded = len(self.reported("Page.loadEventFired"))
        self.call("Page.navigate", url=path.as_uri())
        while len(self.reported("Page.loadEventFired")) == loaded:
            self.events.append(self._receive())

    def reported(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] in methods]

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def screenshot(self) -> bytes:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._answered:
            ready, _, _ = select.select([self._read], [], [], 60)
            assert ready, "the browser has not answered for a minute"
            more = os.read(self._read, 1 << 16)
            assert more, "the browser has gone"
            self._answered += more
        message, self._answered = self._answered.split(b"\0", 1)
        return dict(json.loads(message))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(record, tmp_path_factory.mktemp("run"))


def test_the_page_opens_without_a_complaint_or_a_request(browser: Browser, page: Path) -> None:
    browser.events.clear()
    browser.open(page, 1200)

    assert browser.reported("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []
    assert [sent["request"]["url"] for sent in browser.reported("Network.requestWillBeSent")] == [page.as_uri()]
    assert browser.evaluate("document.querySelectorAll('main section').length") == 10
    keep("wide.png", browser.screenshot())


def test_the_policy_of_the_page_stops_what_slips_in(browser: Browser, page: Path, tmp_path: Path) -> None:
    """The second line of defence: were markup ever let through, it could still not load or run anything."""
    slipped = '<script>document.title = "owned"</script><img src="https://example.org/x">'
    attacked = tmp_path / "attacked.html"
    attacked.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{slipped}"), encoding="utf-8")
    browser.events.clear()
    browser.open(attacked, 1200)

    assert browser.evaluate("document.title") != "owned"
    assert not browser.reported("Network.responseReceived")[1:]
    assert browser.reported("Log.entryAdded"), "the browser says that it refused"


@pytest.mark.parametrize("width", [320, 375, 768])
def test_the_page_fits_a_narrow_screen(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)

    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    keep(f"narrow-{width}.png", browser.screenshot())


def test_dark_mode_reaches_the_pictures(browser: Browser, page: Path) -> None:
    colours = "[...document.querySelectorAll('.panels svg text')].map(text => getComputedStyle(text).fill)"
    browser.open(page, 1200)
    light = browser.evaluate(colours)
    browser.open(page, 1200, dark=True)
    dark = browser.evaluate(colours)

    assert len(light) == len(dark) > 0
    assert all(before != after for before, after in zip(light, dark, strict=True))
    keep("dark.png", browser.screenshot())


def test_the_page_prints_on_a_few_sheets(browser: Browser, page: Path) -> None:
    browser.open(page, 1200)
    printed = browser.pdf()

    assert printed.startswith(b"%PDF")
    assert 2 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 8
    keep("printed.pdf", printed)


def keep(name: str, content: bytes) -> None:
    assert len(content) > 1000
    folder = os.environ.get("SECATEUR_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_bytes(content)
