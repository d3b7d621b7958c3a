"""Label Studio's labelling page, as an annotator uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from numpy.typing import NDArray
from playwright.sync_api import Locator, Page, Response, expect

#: The image's tag of the annotation that is open.
_IMAGE = "[...Htx.annotationStore.selected.names.values()].find(tag => tag.type === 'image')"
_SUGGESTIONS = "[...Htx.annotationStore.selected.suggestions.values()]"
#: How often a switch is tried, and how long each time until it shows that it is on, in ms.
_TRIES = 4
_SHOWN_WITHIN = 3000


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A mask that the page shows and that is not accepted yet.

    Parameters
    ----------
    mask
        bool (H, W), decoded from what the page holds.
    text
        What the region's details say.
    clicks
        For each click that the page sent for it, whether it was positive.
    labels
        Its labels.
    """

    mask: NDArray[np.bool_]
    text: str
    clicks: tuple[bool, ...]
    labels: tuple[str, ...]


def decode_mask(rle: list[int], *, height: int, width: int) -> NDArray[np.bool_]:
    """Decode a region's RLE with the SDK's own decoder: alpha, the last of four channels."""
    return np.asarray(decode_rle(rle)).reshape(height, width, 4)[..., 3] > 0


class LabelingPage:
    """One task, open in a browser.

    Parameters
    ----------
    page
        Playwright's page, logged in.
    screenshots
        Folder for pictures; each step makes one.
    """

    def __init__(self, page: Page, screenshots: Path) -> None:
        self._page = page
        self._screenshots = screenshots
        self._steps = 0

    def open(self, address: str) -> None:
        """Open a task and wait until its image can be clicked on."""
        self._page.goto(address)
        self._page.wait_for_function(
            f"window.Htx?.annotationStore?.selected && {_IMAGE}?.stageRef && {_IMAGE}.imageIsLoaded"
        )
        self.photograph("opened")

    def keep_label_selected(self) -> None:
        """Switch on the setting without which a second click does nothing."""
        self._page.get_by_test_id("bottombar-settings-button").click()
        setting = self._page.get_by_role(
            "checkbox", name="Keep label selected after creating a region"
        )
        _switch_on(setting)
        self._page.wait_for_function("window.Htx.settings.continuousLabeling")
        self.photograph("settings")
        self._page.keyboard.press("Escape")
        expect(setting).to_be_hidden()

    def choose_auto_detect(self, label: str) -> None:
        """Switch on Auto-Annotation, take the Auto-Detect tool, and pick a label for its points."""
        toggle = self._page.get_by_test_id("bottombar-auto-annotation-toggle")
        _switch_on(toggle)
        expect(self._page.get_by_test_id("bottombar-auto-accept-toggle")).not_to_be_checked()
        self._page.locator(".lsf-tool_smart:visible").last.click()
        # Where brushes and points have label rows of their own, that of the points is the last.
        self._page.locator(".lsf-label", has_text=label).last.click()
        self.photograph("tool")

    def choose_smart_tool(self, kind: str) -> None:
        """Take another of the Auto-Detect tools: ``key-point`` or ``rectangle``."""
        self._page.locator(".lsf-tool_smart:visible").last.hover()
        self._page.locator(f'.lsf-tool_smart[aria-label="{kind}-tool"]').last.click()

    def draw_rectangle(self, left: float, top: float, right: float, bottom: float) -> Suggestion:
        """Draw a smart rectangle in pixels of the image, and wait for the mask that answers."""

        def draw() -> None:
            self._page.mouse.move(*self._place(left, top))
            self._page.mouse.down()
            self._page.mouse.move(*self._place((left + right) / 2, (top + bottom) / 2))
            self._page.mouse.move(*self._place(right, bottom))
            self._page.mouse.up()

        (suggestion,) = self._answered(draw)
        self.photograph("rectangle")
        return suggestion

    def click(
        self, x: float, y: float, *, positive: bool = True, through: bool = False
    ) -> Suggestion:
        """Click on the image, and wait for the mask that answers.

        Parameters
        ----------
        x, y
            Pixels of the image.
        positive
            False for Alt+click.
        through
            True for Ctrl+click, which puts a point where a region would be selected.
        """
        (suggestion,) = self.click_for_all(x, y, positive=positive, through=through)
        return suggestion

    def click_for_all(
        self, x: float, y: float, *, positive: bool = True, through: bool = False
    ) -> tuple[Suggestion, ...]:
        """Click on the image, and wait for all masks that answer."""
        keys = [key for key, held in (("Alt", not positive), ("Control", through)) if held]

        def click() -> None:
            for key in keys:
                self._page.keyboard.down(key)
            self._page.mouse.click(*self._place(x, y))
            for key in keys:
                self._page.keyboard.up(key)

        suggestions = self._answered(click)
        self.photograph(f"click-{suggestions[-1].text.replace(' ', '-').replace(',', '')}")
        return suggestions

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Where on the page a pixel of the image is."""
        left, top, x_scale, y_scale = self._page.evaluate(
            f"""() => {{
                const image = {_IMAGE};
                const box = image.stageRef.container().getBoundingClientRect();
                return [box.x, box.y, image.stageWidth / image.naturalWidth,
                        image.stageHeight / image.naturalHeight];
            }}"""
        )
        return left + (x + 0.5) * x_scale, top + (y + 0.5) * y_scale

    def _answered(self, act: Callable[[], None]) -> tuple[Suggestion, ...]:
        with self._page.expect_response("**/interactive-annotating*") as answered:
            act()
        return self._shown(answered.value)

    def take_one(self, number: int) -> None:
        """Take one of several suggestions with the tick that the canvas shows on it."""
        ticks = self._page.evaluate(
            f"""() => {{
                const image = {_IMAGE};
                const box = image.stageRef.container().getBoundingClientRect();
                const plates = image.stageRef.find(
                    node => node.className === 'Rect' && node.width() === 64
                            && node.height() === 32);
                return plates.map(plate => plate.getClientRect()).map(
                    place => [box.x + place.x + 0.75 * place.width,
                              box.y + place.y + 0.5 * place.height]);
            }}"""
        )
        left = len(ticks) - 1
        self._page.mouse.click(*ticks[number])
        self._page.wait_for_function(f"{_SUGGESTIONS}.length === {left}")
        self.photograph("took-one")

    def reject(self) -> None:
        """Throw away all suggestions with the cross of the bottom bar."""
        self._page.get_by_test_id("bottombar-reject-suggestions-button").click()
        self._page.wait_for_function(f"{_SUGGESTIONS}.length === 0")
        self.photograph("rejected")

    def wait_for_draft(self) -> None:
        """Wait until Label Studio has saved what was accepted as a draft."""
        self._page.wait_for_function(
            "() => { const open = Htx.annotationStore.selected;"
            " return open.draftSaved && !open.isDraftSaving; }"
        )

    def accept(self) -> None:
        """Take the suggestion with the tick of the bottom bar."""
        self._page.get_by_test_id("bottombar-accept-suggestions-button").click()
        self._page.wait_for_function(f"{_SUGGESTIONS}.length === 0")
        self.photograph("accepted")

    def expect_details(self, label: str, text: str) -> None:
        """Select the only region in the list, and look for a text in its details."""
        self._page.locator(".lsf-outliner").get_by_text(label).last.click()
        expect(self._page.get_by_text(text, exact=True)).to_be_visible()
        self.photograph("details")

    def submit(self) -> int:
        """Submit, and return the number of the annotation that Label Studio made."""
        with self._page.expect_response(
            lambda response: (
                response.request.method == "POST" and "/annotations" in response.request.url
            )
        ) as answered:
            self._page.get_by_test_id("bottombar-submit-button").click()
        answer = answered.value
        assert answer.status == 201, answer.text()
        expect(self._page.get_by_test_id("bottombar-update-button")).to_be_visible()
        self.photograph("submitted")
        return int(answer.json()["id"])

    def photograph(self, name: str) -> None:
        """Keep a picture of the page."""
        self._steps += 1
        self._page.screenshot(path=self._screenshots / f"{self._steps:02}-{name}.png")

    def _shown(self, answer: Response) -> tuple[Suggestion, ...]:
        assert answer.status == 200, answer.text()
        data: dict[str, Any] = answer.json()["data"]
        # With <Labels> a region is two results with one id.
        regions = {region["id"]: region for region in data["result"]}
        labels = {
            region["id"]: tuple(region["value"].get("labels") or region["value"]["brushlabels"])
            for region in data["result"]
            if region["type"] != "brush"
        }
        rles = [json.dumps(each["value"]["rle"]).replace(" ", "") for each in regions.values()]
        # The page draws some time after the answer is there.
        self._page.wait_for_function(
            f"rles => {{ const shown = {_SUGGESTIONS}.map(each => JSON.stringify([...each.rle]));"
            " return JSON.stringify(shown) === JSON.stringify(rles); }",
            arg=rles,
        )
        held = self._page.evaluate(
            f"""() => {{
                const image = {_IMAGE};
                return {_SUGGESTIONS}.map(region => ({{
                    rle: [...region.rle], text: region.meta.text.join(' '),
                    height: image.naturalHeight, width: image.naturalWidth}}));
            }}"""
        )
        return tuple(
            Suggestion(
                mask=decode_mask(each["rle"], height=each["height"], width=each["width"]),
                text=each["text"],
                clicks=_clicks(answer.request.post_data_json),
                labels=labels.get(name, ()),
            )
            for name, each in zip(regions, held, strict=True)
        )


def _clicks(request: dict[str, Any]) -> tuple[bool, ...]:
    # With <Labels> each click is sent twice, with one id.
    points = {
        point["id"]: point["is_positive"]
        for point in request["context"]["result"]
        if "is_positive" in point
    }
    return tuple(points.values())


def _switch_on(switch: Locator) -> None:
    """Switch on what may be on already.

    React shows it a moment after the click, for which `Locator.check` does not wait. A click while
    Label Studio draws its page anew is lost, as it is for a person, who clicks again.
    """
    for _ in range(_TRIES):
        if not switch.is_checked():
            switch.click()
        with suppress(AssertionError):
            expect(switch).to_be_checked(timeout=_SHOWN_WITHIN)
            break
    expect(switch).to_be_checked()
