"""The pages in a real Chromium: what a team sees after some days, and what its buttons do."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from pydantic import SecretStr
from werkzeug.serving import make_server

from lidiv_backend.learning.process import work
from lidiv_backend.learning.registry import BASE, SHARED, ModelRegistry
from lidiv_backend.learning.runs import RunQueue
from lidiv_backend.learning.worker import StateFolders, Worker
from lidiv_backend.model import save_model
from lidiv_backend.server.app import backend_of, create_app
from lidiv_backend.server.backend import Backend
from lidiv_backend.server.connections import image_source
from lidiv_backend.server.settings import Settings
from tests import tiny
from tests.browser.conftest import CHROMIUM, CHROMIUM_ARGUMENTS
from tests.fake_engine import FakeEngine
from tests.image_host import Answer, ImageHost, image_host
from tests.learning.test_process import base_folder
from tests.server.lab_day import LabDay

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

USER, PASSWORD = "lab", "pässword"
LOGIN = (USER, PASSWORD.encode())
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
#: How the masks of each day were made, the first day first.
DAYS = (["+++-", "++n", "+++"], ["++-", "+n", "+++"], ["++", "+", "+n"], ["+", "++", "+", "+"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lab:
    """A backend after some days of work."""

    url: str
    host: ImageHost
    backend: Backend

    @property
    def registry(self) -> ModelRegistry:
        settings = self.backend.settings
        return ModelRegistry(settings.state_folder, base=settings.preset)

    @property
    def in_use(self) -> str:
        return self.registry.pointer(SHARED).version

    def runs(self) -> int:
        return len(RunQueue(self.backend.store).runs())

    def work(self) -> None:
        """Do the run that waits, here: the process of a worker would load everything again."""
        backend = self.backend
        worker = Worker(
            store=backend.store,
            queue=RunQueue(backend.store),
            registry=self.registry,
            folders=StateFolders(state=backend.settings.state_folder),
            settings=backend.learning,
            fetch=lambda project, task, address: image_source(backend.settings).rgb(
                address, backend.connection(project), task=task
            ),
            spawn=lambda folder, _: _ended(folder),
        )
        assert worker.step()


def _ended(folder: Path) -> subprocess.Popen[bytes]:
    """A process that has done the run in a folder."""
    work(folder)
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended


def weights(folder: Path) -> Path:
    """A model that any machine trains in seconds."""
    about = dataclasses.replace(
        tiny.description(heads=3, ranked=True),
        training={"crop": 32, "images": 2, "targets": 1, "joint": True},
    )
    save_model(folder, about, tiny.model(about, seed=0).proposal.state_dict(), None)
    return folder


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    # Three of the images are held out: too few for the gate to promote by itself.
    learning = {"STEPS": 20, "HOLDOUT": 0.25, "THREADS": 1, "GATE_OBJECTS": 1, "DEVICE": "cpu"}
    for name, value in learning.items():
        monkeypatch.setenv(f"LIDIV_LEARN_{name}", str(value))
    monkeypatch.setenv("LIDIV_BASE_DATA", base_folder(tmp_path / "base"))
    with image_host() as host:
        settings = Settings(
            state=tmp_path / "state",
            preset=str(weights(tmp_path / "tiny")),
            label_studio_url=host.url,
            label_studio_token=SecretStr("placeholder-token"),
            basic_auth_user=USER,
            basic_auth_password=SecretStr(PASSWORD),
        )
        # Disks around clicks, so that everything can be counted; what is learnt is a real model.
        app = create_app(settings, engine=FakeEngine())
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"

        def post(path: str, body: Any) -> Any:
            answer = requests.post(f"{url}{path}", json=body, auth=LOGIN, timeout=300)
            assert answer.ok, answer.text
            return answer.json()

        try:
            day = LabDay(post=post, host=host)
            day.connect(hostname="https://annotate.example.org")
            for clicks in (clicks for each in DAYS for clicks in each):
                day.accept(clicks)
            # A failure, as annotators cause them.
            as_json = {"Content-Type": "application/json"}
            requests.post(f"{url}/predict", data=b"{", headers=as_json, auth=LOGIN, timeout=300)
            _spread_over_days(tmp_path / "state" / "lidiv.sqlite")
            yield Lab(url=url, host=host, backend=backend_of(app))
        finally:
            server.shutdown()
            thread.join()
            backend_of(app).close()


def _spread_over_days(database: Path) -> None:
    """Let the masks have been made on several days; everything else is as it came in."""
    annotation = 1100
    with sqlite3.connect(database) as connection:
        for ago, made in zip(range(3 * len(DAYS) - 3, -1, -3), DAYS, strict=True):
            for _ in made:
                connection.execute(
                    "UPDATE accepted_masks SET day = date('now', ?) WHERE annotation = ?",
                    (f"-{ago} days", annotation),
                )
                annotation += 1
    connection.close()


@pytest.fixture
def browser() -> Iterator[Browser]:
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"There is no Chromium at {CHROMIUM}: install it or set LIDIV_CHROMIUM.")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


def look(page: Page, path: Path) -> None:
    """Keep pictures of a page, as it is on a desk, on a phone, and in the dark; check the page."""
    assert page.evaluate(UNNAMED) == []
    for name, size, colours in (
        ("desktop", DESKTOP, "light"),
        ("phone", PHONE, "light"),
        ("dark", DESKTOP, "dark"),
    ):
        page.emulate_media(color_scheme=colours)  # type: ignore[arg-type]
        page.set_viewport_size(size)  # type: ignore[arg-type]
        page.screenshot(path=path.with_name(f"{path.name}-{name}.png"), full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{path.name} is {wide} pixels too wide on a {name}"
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]


#: What somebody who does not see the page would miss.
UNNAMED = """() => {
  const found = [], id = n => document.getElementById(n);
  const bad = (what, wrong) => {
    for (const e of document.querySelectorAll(what)) if (wrong(e)) found.push(e.outerHTML);
  };
  bad("svg", e => !e.getAttribute("aria-label"));
  bad("img", e => !e.alt || (e.complete && !e.naturalWidth));
  bad("th", e => !e.scope);
  bad("button", e => !e.textContent.trim());
  bad("table", e => !e.getAttribute("aria-label") && !e.getAttribute("aria-labelledby"));
  bad("[aria-labelledby]", e => !id(e.getAttribute("aria-labelledby")));
  bad("[aria-describedby]", e => !id(e.getAttribute("aria-describedby")));
  bad("[id]", e => id(e.id) !== e);
  bad("h1", e => e !== document.querySelector("h1"));
  return found;
}"""


def test_the_page_and_its_buttons(lab: Lab, browser: Browser, screenshots: Path) -> None:
    assert requests.get(lab.url, timeout=300).status_code == 401
    context = browser.new_context(
        http_credentials={"username": USER, "password": PASSWORD}, viewport=DESKTOP
    )
    page = context.new_page()
    page.set_default_timeout(300_000)
    troubles: list[str] = []
    page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)

    page.goto(lab.url)
    masks = [clicks for day in DAYS for clicks in day]
    tiles = page.locator(".tiles dd").all_inner_texts()
    assert tiles[0].startswith(f"{sum(map(len, masks)) / len(masks):.1f}")
    assert tiles[1].startswith(f"{len(masks)}")
    stepped = sum("n" in clicks for clicks in masks)
    assert f"{stepped} of {len(masks)} masks" in tiles[2]
    page.locator("summary", has_text="day by day").click()
    rows = page.locator("#usage ~ details tbody tr")
    assert rows.count() == len(DAYS)
    for row, made in zip(rows.all(), reversed(DAYS), strict=True):
        cells = row.locator("td").all_inner_texts()
        assert cells[:2] == [f"{len(made)}", f"{sum(map(len, made)) / len(made):.2f}"]
    assert "The request is not JSON" in page.locator("section:has(#failures)").inner_text()
    assert "https://annotate.example.org" in page.locator("section:has(#projects)").inner_text()
    look(page, screenshots / "01-overview")

    page.get_by_role("button", name="Start training").click()
    page.wait_for_url(f"{lab.url}/runs/1?said=started")
    assert "asked for" in page.get_by_role("status").inner_text()
    page.screenshot(path=screenshots / "02-started.png")
    assert "waits" in page.locator("main").inner_text()
    lab.work()
    # The page is loaded again and again by itself, until the verdict is there.
    page.wait_for_selector("#verdict")
    verdict = page.locator("section:has(#verdict)").inner_text()
    assert "Kept, not promoted: only 3 images are held out" in verdict
    assert page.locator("section:has(#curves) svg").count() == 2
    assert page.locator("section:has(#examples) img").count() == 9
    page.goto(f"{lab.url}/runs/1")
    look(page, screenshots / "03-run")

    page.goto(lab.url)
    assert page.get_by_role("button", name="Start training").is_enabled()
    look(page, screenshots / "04-overview-after-a-run")

    page.goto(f"{lab.url}/runs/1")
    page.locator("section:has(#verdict) a.version").click()
    page.locator("summary", has_text="Promote for all projects").click()
    page.screenshot(path=screenshots / "05-promote.png")
    assert lab.in_use == BASE
    page.get_by_role("button", name="Promote").click()
    page.wait_for_selector("[role=status]")
    assert "in use now" in page.get_by_role("status").inner_text()
    promoted = lab.in_use
    assert promoted != BASE
    assert promoted in page.locator("h1").inner_text()
    look(page, screenshots / "06-promoted")

    page.goto(lab.url)
    assert promoted in page.locator("section:has(#learning)").inner_text()
    page.locator("summary", has_text="Roll back").click()
    page.screenshot(path=screenshots / "07-roll-back.png")
    other = context.new_page()
    other.goto(lab.url)
    page.get_by_role("button", name="Roll back").click()
    page.wait_for_selector("[role=status]")
    assert "in use again" in page.get_by_role("status").inner_text()
    assert lab.in_use == BASE
    page.screenshot(path=screenshots / "08-rolled-back.png")
    assert troubles == []

    # Another tab still shows what was true before.
    other.locator("summary", has_text="Roll back").click()
    other.get_by_role("button", name="Roll back").click()
    assert "meanwhile" in other.get_by_role("alert").inner_text()
    look(other, screenshots / "09-too-late")

    # Another site makes the browser, which knows the password, press the button.
    target = f"{lab.url}/channels/shared/train"
    form = f'<form method="post" action="{target}"><button>Win!</button></form>'
    lab.host.routes["/win"] = Answer(body=form.encode(), headers={"Content-Type": "text/html"})
    before = lab.runs()
    page.goto(f"{lab.host.url}/win")
    page.get_by_role("button").click()
    assert "not sent from this server" in page.get_by_role("alert").inner_text()
    assert lab.runs() == before == 1
    context.close()
