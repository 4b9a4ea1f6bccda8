"""The page of the server in Chromium: with a mouse, by keyboard only, on a phone, in the dark, and when things fail."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from resnetkit.calibration import Calibration
from resnetkit.detect.predict import DetectorPredictor
from resnetkit.infer.predictor import Predictor
from serving import jpeg, process, write_detector, write_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'resnetkit[dev]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
expect = playwright.expect
expect.set_options(timeout=30_000)  # milliseconds: a busy machine takes its time
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1200, "height": 900}
KEY = "a key: 100%"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, kernel_folder: Path) -> Path:
    """Pictures, model a, which is calibrated and rejects one of them or two, model b, and a detector."""
    folder = tmp_path_factory.mktemp("page")
    for place in range(3):
        (folder / f"it's {place}.jpg").write_bytes(jpeg(place, size=(320, 240)))
    write_model(folder / "a.safetensors", calibration=Calibration(2.5, 40))
    found = Predictor(folder / "a.safetensors", backend="torch").probabilities(
        list(map(Path, pictures(folder, 0, 1, 2)))
    )
    least = float(np.sort(found.max(axis=1))[:2].mean())
    ranks = (least, least, *np.linspace(least, 1, 38).tolist())
    write_model(folder / "a.safetensors", calibration=Calibration(2.5, 40, ranks))
    write_model(folder / "b.safetensors", seed=1)
    every = DetectorPredictor(write_detector(folder / "finds.safetensors"), backend="torch", threshold=0)
    found = every(folder / "it's 0.jpg")["detections"]
    scores = {name: [one["score"] for one in found if one["label"] == name] for name in every.classes}
    third = {name: (of_class[:3] or [1.0])[-1] - 1e-6 for name, of_class in scores.items()}
    write_detector(folder / "finds.safetensors", thresholds=third)  # so it finds up to three of each class
    (folder / "notes.txt").write_text("no picture")
    (folder / "kernels").symlink_to(kernel_folder)
    return folder


@contextmanager
def server(folder: Path, *arguments: str, names: Sequence[str] = ("a", "b")) -> Iterator[str]:
    models = [f"{name}={folder / name}.safetensors" for name in names]
    with process(*models, "--backend", "torch", *arguments, cache=folder) as (_, url):
        yield url + "/"


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with server(folder, names=("a", "b", "finds")) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Opens pages; at the end, none of them may have failed in its own code or asked another address."""
    contexts, failed = [], []

    def opened(address: str, ready: bool = True, **options: Any) -> "Page":
        context = browser.new_context(**{"viewport": DESK, "reduced_motion": "reduce"} | options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("request", lambda one: one.url.startswith((address, "blob:", "data:")) or failed.append(one.url))
        page.on("filechooser", lambda one: None)  # from now on choosers are caught, which takes a moment to begin
        page.on("console", lambda one: "Content Security" in one.text and failed.append(one.text))
        page.goto(address)
        if ready:
            expect(page.locator("#drop")).to_be_visible()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert failed == []


def pictures(folder: Path, *places: int) -> list[str]:
    return [str(folder / f"it's {place}.jpg") for place in places]


def no_serious_findings(page: "Page") -> None:
    found = axe.Axe().run(page).response
    assert len(found["passes"]) > 20
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


def test_pictures_are_answered_and_what_is_no_picture_says_so(opened: Any, url: str, folder: Path) -> None:
    page = opened(url)
    assert page.title() == "a – resnetkit"
    expect(page.locator("#lead")).to_have_text("a tells 3 classes apart: cat, frog and Größe.")
    page.set_input_files("#files", [*pictures(folder, 0, 1, 2), str(folder / "notes.txt")])
    expect(page.locator(".verdict:visible")).to_have_count(3)
    expect(page.locator(".failure:visible")).to_have_text(re.compile("can’t be read: not a picture of a known kind"))
    predictor = Predictor(folder / "a.safetensors", backend="torch")
    files = [Path(one) for one in pictures(folder, 0, 1, 2)]
    rejected = predictor.rejected(files)
    assert 0 < rejected.sum() < 3
    for card, best, reject in zip(page.locator(".card").all(), predictor(files), rejected, strict=False):
        expect(card.locator(".bar-label")).to_have_text([one.label for one in best])
        expect(card.locator(".percent")).to_have_text([f"{100 * one.probability:.1f} %" for one in best])
        expect(card.locator(".rejected")).to_be_visible(visible=bool(reject))
    page.locator(".remove").first.click()
    expect(page.locator(".card")).to_have_count(3)
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#code")).to_be_hidden()


def test_the_evidence_for_any_class_is_drawn_over_the_picture(opened: Any, url: str, folder: Path) -> None:
    page = opened(url)
    page.set_input_files("#files", pictures(folder, 0))
    best = page.locator("button.bar")
    expect(best).to_have_count(3)
    expect(page.get_by_label("Another class")).to_be_hidden()
    page.select_option("#top", "1")
    expect(best).to_have_count(1)
    best.click()
    evidence = page.locator(".evidence")
    expect(evidence).to_be_visible()
    expect(best).to_have_attribute("aria-pressed", "true")
    assert evidence.evaluate("one => one.decode().then(() => [one.naturalWidth, one.naturalHeight])") == [320, 240]
    first = evidence.get_attribute("src")
    page.get_by_role("button", name="Hide").click()
    expect(evidence).to_be_hidden()
    other = next(name for name in ("cat", "frog") if name != page.locator(".bar-label").inner_text())
    page.get_by_label("Another class").fill(other.upper())
    page.get_by_role("button", name="Show where").click()
    expect(page.locator(".caption")).to_have_text(re.compile(f"Evidence for {other}, "))
    assert evidence.get_attribute("src") != first
    page.get_by_label("Another class").fill("dog")
    page.get_by_role("button", name="Show where").click()
    expect(page.locator(".explain-state")).to_have_text("The model has no class “dog”.")


def test_boxes_are_drawn_and_listed_and_code_finds_the_same(opened: Any, url: str, folder: Path) -> None:
    page = opened(url)
    page.select_option("#model", "finds")
    expect(page.locator("#lead")).to_have_text("finds finds objects of 3 classes: cat, frog and Größe.")
    page.set_input_files("#files", pictures(folder, 0))
    expect(page.locator(".verdict:visible")).to_have_count(1)
    predictor = DetectorPredictor(folder / "finds.safetensors", backend="torch")
    expected = predictor(folder / "it's 0.jpg")["detections"]
    assert len({one["label"] for one in expected}) > 1
    rows, drawn = page.locator(".object"), page.locator(".boxes .line")
    expect(rows).to_have_count(len(expected))
    expect(page.locator(".object .bar-label")).to_have_text([one["label"] for one in expected])
    expect(page.locator(".object .percent")).to_have_text([f"{100 * one['score']:.1f} %" for one in expected])
    expect(drawn).to_have_count(len(expected))
    left, top, right, bottom = expected[0]["box"]  # it is drawn last, in the picture's pixels
    scale = page.locator(".boxes").bounding_box()["width"] / 320
    frame = drawn.last.evaluate("one => (({x, y, width, height}) => [x, y, width, height])(one.getBBox())")
    assert frame == pytest.approx([left, top, right - left, bottom - top], abs=0.01)
    on_screen = drawn.last.bounding_box()
    picture = page.locator(".picture").bounding_box()
    assert on_screen["x"] - picture["x"] == pytest.approx(scale * left, abs=4)
    assert on_screen["y"] - picture["y"] == pytest.approx(scale * top, abs=4)
    # By keyboard: one stop for the list, arrows within it, Enter holds an object.
    rows.first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(rows.nth(1)).to_have_attribute("aria-pressed", "true")
    assert page.locator(".object[tabindex='0']").count() == 1
    expect(page.locator(".boxes.dimmed .lit .line")).to_have_count(1)
    expect(page.locator("#status")).to_have_text(re.compile(r"it's 0.jpg: \w+, [a-z ]+, is shown alone"))
    cats = page.locator(".legend").get_by_role("button", name="cat")
    cats.click()
    others = [one["label"] for one in expected if one["label"] != "cat"]
    expect(page.locator(".object .bar-label")).to_have_text(others)
    cats.click()
    # Another threshold is that of the request, too.
    page.get_by_label("Least score").fill("10")
    least = DetectorPredictor(folder / "finds.safetensors", threshold=0.1, backend="torch")(folder / "it's 0.jpg")[
        "detections"
    ]
    assert len(least) > len(expected)
    expect(rows).to_have_count(len(least))
    environment = os.environ | {"NO_PROXY": "127.0.0.1"}
    command = ["sh", "-c", page.locator("#snippet").inner_text()]
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True, env=environment).stdout
    assert json.loads(found)["results"][0]["detections"] == least
    page.get_by_label("Python", exact=True).check(force=True)
    command = [sys.executable, "-c", page.locator("#snippet").inner_text()]
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True, env=environment).stdout
    assert len(found.splitlines()) == len(least)
    page.get_by_role("button", name="Reset to the model").click()
    expect(rows).to_have_count(len(expected))
    page.get_by_label("Least score").fill("100")
    expect(page.locator(".best")).to_have_text("Nothing found")
    page.select_option("#model", "a")  # a classifier again
    expect(page.locator(".bar")).to_have_count(3)
    expect(page.locator(".boxes")).to_be_hidden()
    expect(page.get_by_label("Least score")).to_be_hidden()


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESK, "light")], ids=["phone", "desk"])
def test_boxes_fit_and_have_no_serious_findings(
    opened: Any, url: str, folder: Path, scheme: str, size: dict[str, int]
) -> None:
    page = opened(url, viewport=size, color_scheme=scheme, has_touch=size is PHONE, is_mobile=size is PHONE)
    page.select_option("#model", "finds")
    page.set_input_files("#files", pictures(folder, 0, 1))
    expect(page.locator(".verdict:visible")).to_have_count(2)
    page.locator(".object").first.click()
    page.locator("#about-details").evaluate("one => { one.open = true; }")
    no_serious_findings(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size["width"]


def test_what_it_shows_as_code_does_the_same(opened: Any, url: str, folder: Path) -> None:
    page = opened(url)
    page.select_option("#model", "b")
    page.set_input_files("#files", pictures(folder, 0, 1))
    expect(page.locator(".verdict:visible")).to_have_count(2)

    def code(language: str) -> str:
        page.get_by_label(language, exact=True).check(force=True)
        return page.locator("#snippet").inner_text()

    def run(command: list[str]) -> str:
        environment = os.environ | {"NO_PROXY": "127.0.0.1"}
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True, env=environment).stdout

    labels = [card.locator(".best-label").inner_text() for card in page.locator(".card").all()]
    answer = json.loads(run(["sh", "-c", code("curl")]))
    assert answer["model"] == "b"
    assert [one["predictions"][0]["label"] for one in answer["results"]] == labels
    assert [one["name"] for one in answer["results"]] == ["it's 0.jpg", "it's 1.jpg"]
    printed = run([sys.executable, "-c", code("Python")]).splitlines()
    assert [printed[0].split()[2], printed[3].split()[2]] == labels
    page.locator("button.bar").nth(1).click()
    expect(page.locator(".evidence:visible")).to_have_count(1)
    answer = json.loads(run(["sh", "-c", code("curl")]))
    assert answer["results"][0]["explanation"]["label"] == page.locator(".bar-label").nth(1).inner_text()
    run([sys.executable, "-c", code("Python")])
    with Image.open(folder / "it's 0.jpg.evidence.png") as drawn:
        assert drawn.size == (320, 240)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == page.locator("#snippet").inner_text()


def test_pictures_are_dropped_and_pasted(opened: Any, url: str, folder: Path) -> None:
    page = opened(url)
    send = """async ([kind, content]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(content);
        transfer.items.add(new File([bytes], `${kind}.jpg`, {type: "image/jpeg"}));
        if (kind === "paste") {
            dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true}));
            return;
        }
        for (const name of ["dragenter", "dragover", "drop"]) {
            const event = new DragEvent(name, {dataTransfer: transfer, bubbles: true, cancelable: true});
            document.querySelector("h1").dispatchEvent(event);
            if (name === "dragover" && !document.querySelector("#drop.over")) throw new Error("no sign of it");
        }
    }"""
    for place, kind in enumerate(("drop", "paste")):
        page.evaluate(send, [kind, list(jpeg(place))])
        expect(page.locator(".verdict:visible")).to_have_count(place + 1)
        expect(page.locator(".name").first).to_have_text(f"{kind}.jpg")
    assert page.locator("#drop.over").count() == 0


def test_by_keyboard_alone(opened: Any, url: str, folder: Path) -> None:
    page = opened(url)

    def reach(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "() => { const one = document.activeElement;"
                " return [one.getAttribute('aria-label') || one.innerText || one.labels?.[0]?.innerText || one.value,"
                " one.matches(':focus-visible') && getComputedStyle(one).outlineStyle !== 'none'"
                " || one.closest('.tabs') !== null]; }"
            )
            if name in (focused[0] or ""):
                assert focused[1], f"{name} shows no focus"
                return
        raise AssertionError(f"{name} can't be reached")

    reach("Skip to the answers")
    reach("Choose pictures")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    assert chooser.value.is_multiple()
    chooser.value.set_files(pictures(folder, 0, 1))
    expect(page.locator(".verdict:visible")).to_have_count(2)
    expect(page.locator("#status")).to_have_text(re.compile(r"it's [01].jpg: .* %"))
    reach("Remove it's 0.jpg")
    reach(page.locator(".bar-label").first.inner_text())
    page.keyboard.press("Enter")
    expect(page.locator(".evidence:visible")).to_have_count(1)
    expect(page.locator("#status")).to_have_text(re.compile("The evidence for .* is drawn over it's 0.jpg"))
    page.keyboard.press("Space")
    expect(page.locator(".evidence:visible")).to_have_count(0)
    reach("curl")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#snippet")).to_contain_text("import requests")
    for _ in range(3):
        page.keyboard.press("Tab")
    page.locator(".remove").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.querySelector('.name').innerText") == "it's 1.jpg"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_it_fits_and_has_no_serious_findings(
    opened: Any, url: str, folder: Path, scheme: str, size: dict[str, int]
) -> None:
    phone = size is PHONE
    page = opened(url, viewport=size, color_scheme=scheme, has_touch=phone, is_mobile=phone)
    no_serious_findings(page)
    assert page.locator("#photograph").is_visible() == phone
    assert page.locator("#camera").get_attribute("capture") == "environment"
    page.set_input_files("#files", [*pictures(folder, 0, 1, 2), str(folder / "notes.txt")])
    expect(page.locator(".verdict:visible")).to_have_count(3)
    page.locator("button.bar").first.click()
    expect(page.locator(".evidence:visible")).to_have_count(1)
    page.locator("#about-details").evaluate("one => { one.open = true; }")
    no_serious_findings(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size["width"]
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", paper)[:3])) / 3
    assert light > 200 if scheme == "light" else light < 50


def test_a_busy_server_is_asked_again_when_it_says(opened: Any, url: str, folder: Path) -> None:
    page = opened(url)
    tries: list[str] = []

    def answer(route: "Route") -> None:
        tries.append(route.request.url)
        if len(tries) == 1:
            route.fulfill(status=503, headers={"retry-after": "1"}, json={"error": "too many requests wait"})
        else:
            route.continue_()

    page.route("**/predict?*", answer)
    page.set_input_files("#files", pictures(folder, 0))
    expect(page.locator(".step")).to_have_text("The server is busy. Next try in 1 s")
    expect(page.locator(".verdict")).to_be_visible()
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("status", "headers", "body", "words", "again"),
    [
        (413, {}, {"error": "the body has more than 9 bytes"}, "too large for the server (the body has more", False),
        (500, {"x-request-id": "abc"}, {"error": "internal error"}, "its log has the reason under the id abc", True),
        (504, {}, {"error": "late"}, "did not answer in time", True),
        (404, {}, {"error": 'there is no model "a"'}, 'The server says: there is no model "a"', True),
        (0, {}, {}, "The server can’t be reached", True),
    ],
)
def test_what_goes_wrong_is_said(
    opened: Any, url: str, folder: Path, status: int, headers: dict, body: dict, words: str, again: bool
) -> None:
    page = opened(url)
    page.route(
        "**/predict?*",
        lambda route: route.fulfill(status=status, headers=headers, json=body) if status else route.abort(),
    )
    page.set_input_files("#files", pictures(folder, 0))
    expect(page.locator(".reason")).to_contain_text(words)
    expect(page.locator("#status")).to_contain_text(words)
    button = page.get_by_role("button", name="Try again: it's 0.jpg")
    expect(button).to_be_visible(visible=again)
    no_serious_findings(page)
    page.unroute_all()
    if again:
        button.click()
        expect(page.locator(".verdict")).to_be_visible()


def test_a_slow_server_shows_that_it_is_waited_for_and_can_be_left(opened: Any, url: str, folder: Path) -> None:
    page = opened(url)
    page.clock.install()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        page.route("**/predict?*", lambda route: route.continue_(url=address))
        wait_and_leave(page, folder)


def wait_and_leave(page: "Page", folder: Path) -> None:
    page.set_input_files("#files", pictures(folder, 0, 1))
    first, second = page.locator(".card").all()
    expect(first.locator(".step")).to_have_text("Waiting for the answer")
    page.clock.run_for(5_000)
    expect(first.locator(".step")).to_have_text(re.compile("Waiting for the answer, [45] s"))
    no_serious_findings(page)
    first.get_by_role("button", name="Cancel it's 0.jpg").click()
    expect(first.locator(".reason")).to_have_text("Cancelled.")
    page.clock.run_for(60_000)
    expect(second.locator(".reason")).to_have_text("No answer within 45 seconds.")


def test_a_file_beyond_the_limit_is_not_sent(opened: Any, folder: Path) -> None:
    with server(folder, "--max-body", "2000") as url:
        page = opened(url)
        sent: list[str] = []
        page.on("request", lambda one: "predict" in one.url and sent.append(one.url))
        page.set_input_files("#files", pictures(folder, 0))
        expect(page.locator(".reason")).to_contain_text("the server takes up to 2.0 KiB")
        assert sent == []


def test_the_key_is_asked_for(opened: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "key").write_text(KEY)
    with server(folder, "--api-key-file", str(folder / "key")) as url:
        page = opened(url, ready=False)
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        no_serious_findings(page)
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-hint")).to_contain_text("does not accept this key")
        field.fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#drop")).to_be_visible()
        page.set_input_files("#files", pictures(folder, 0))
        expect(page.locator(".verdict")).to_be_visible()
        expect(page.locator("#snippet")).to_contain_text('-H "X-API-Key: $RESNETKIT_API_KEY"')
        assert KEY not in page.content()
        monkeypatch.setenv("RESNETKIT_API_KEY", KEY)
        found = subprocess.run(
            ["sh", "-c", page.locator("#snippet").inner_text()], capture_output=True, text=True, cwd=folder, check=True
        )
        assert '"predictions"' in found.stdout
        page.reload()
        expect(page.locator("#drop")).to_be_visible()


def test_a_server_that_does_not_answer_is_asked_again(opened: Any, url: str) -> None:
    page = opened(url)
    page.route("**/models", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The server can’t be reached")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#drop")).to_be_visible()
