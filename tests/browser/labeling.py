"""Label Studio's labelling page, as an annotator uses it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from numpy.typing import NDArray
from playwright.sync_api import Page, Response, expect

#: The image's tag of the annotation that is open.
_IMAGE = "[...Htx.annotationStore.selected.names.values()].find(tag => tag.type === 'image')"
_SUGGESTIONS = "[...Htx.annotationStore.selected.suggestions.values()]"


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
    """

    mask: NDArray[np.bool_]
    text: str
    clicks: tuple[bool, ...]


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
        setting.check()
        self.photograph("settings")
        self._page.keyboard.press("Escape")
        expect(setting).to_be_hidden()

    def choose_auto_detect(self, label: str) -> None:
        """Switch on Auto-Annotation, take the Auto-Detect tool, and pick a label for its points."""
        toggle = self._page.get_by_test_id("bottombar-auto-annotation-toggle")
        toggle.check()
        expect(self._page.get_by_test_id("bottombar-auto-accept-toggle")).not_to_be_checked()
        self._page.locator(".lsf-tool_smart:visible").last.click()
        # Where brushes and points have label rows of their own, that of the points is the last.
        self._page.locator(".lsf-label", has_text=label).last.click()
        self.photograph("tool")

    def click(self, x: float, y: float, *, positive: bool = True) -> Suggestion:
        """Click on the image, and wait for the mask that answers.

        Parameters
        ----------
        x, y
            Pixels of the image.
        positive
            False for Alt+click.
        """
        where = self._page.evaluate(
            f"""() => {{
                const image = {_IMAGE};
                const box = image.stageRef.container().getBoundingClientRect();
                return [box.x, box.y, image.stageWidth / image.naturalWidth,
                        image.stageHeight / image.naturalHeight];
            }}"""
        )
        left, top, x_scale, y_scale = where
        with self._page.expect_response("**/interactive-annotating*") as answered:
            if not positive:
                self._page.keyboard.down("Alt")
            self._page.mouse.click(left + (x + 0.5) * x_scale, top + (y + 0.5) * y_scale)
            if not positive:
                self._page.keyboard.up("Alt")
        suggestion = self._shown(answered.value)
        self.photograph(f"click-{suggestion.text.replace(' ', '-')}")
        return suggestion

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

    def _shown(self, answer: Response) -> Suggestion:
        assert answer.status == 200, answer.text()
        data: dict[str, Any] = answer.json()["data"]
        (rle,) = {json.dumps(region["value"]["rle"]) for region in data["result"]}
        # The page draws some time after the answer is there.
        self._page.wait_for_function(
            f"rle => {{ const all = {_SUGGESTIONS};"
            " return all.length === 1 && JSON.stringify([...all[0].rle]) === rle; }",
            arg=rle.replace(" ", ""),
        )
        held = self._page.evaluate(
            f"""() => {{
                const [region] = {_SUGGESTIONS};
                const image = {_IMAGE};
                return {{rle: [...region.rle], text: region.meta.text.join(' '),
                         height: image.naturalHeight, width: image.naturalWidth}};
            }}"""
        )
        return Suggestion(
            mask=decode_mask(held["rle"], height=held["height"], width=held["width"]),
            text=held["text"],
            clicks=_clicks(answer.request.post_data_json),
        )


def _clicks(request: dict[str, Any]) -> tuple[bool, ...]:
    # With <Labels> each click is sent twice, with one id.
    points = {point["id"]: point["is_positive"] for point in request["context"]["result"]}
    return tuple(points.values())
