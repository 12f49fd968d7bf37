"""The explorer in a real browser, as a person uses it. Skipped where there is no Chromium with its driver."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from .shop import ITEMS, Process, running

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver
    from selenium.webdriver.remote.webelement import WebElement

Found = TypeVar("Found")

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium with chromedriver: apt-get install chromium chromium-driver"
)
NASTY = [title for title in ITEMS.values() if "<" in title]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
        "--disable-background-networking", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    except WebDriverException as error:
        pytest.skip(f"Chromium does not start here: {error.msg}")
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[Process]:
    with running(models / "both") as process:
        yield process


class Page:
    """What a person can see and do."""

    def __init__(self, browser: WebDriver, url: str) -> None:
        self.browser = browser
        browser.get("about:blank")
        browser.get(url)
        self.until(lambda: self.titles("served"))

    def until(self, true: Callable[[], Found]) -> Found:
        """What `true` gives, as soon as it gives something."""
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            try:
                if found := true():
                    return found
            except StaleElementReferenceException:
                pass
            time.sleep(0.02)
        raise AssertionError(f"this did not come true; the page says: {self.text('body')[:2000]}")

    def find(self, css: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def attribute(self, css: str, name: str) -> str:
        return str(self.find(css).get_attribute(name))

    def text(self, css: str) -> str:
        return str(self.find(css).text)

    def titles(self, name: str) -> list[str]:
        script = "return [...document.querySelectorAll(`#${arguments[0]} .title`)].map(title => title.textContent)"
        return list(self.browser.execute_script(script, name))

    @property
    def history(self) -> list[str]:
        script = "return [...document.querySelectorAll('#history li > span:nth-child(2)')].map(row => row.textContent)"
        return list(self.browser.execute_script(script))

    def search(self, words: str) -> list[str]:
        field = self.find("#search")
        field.clear()
        field.send_keys(words)
        self.until(lambda: self.find("#found").is_displayed())
        return self.until(lambda: [option.text for option in self.browser.find_elements(By.CSS_SELECTOR, "#found li")])

    def add(self, words: str) -> None:
        count = len(self.history)
        self.search(words)
        self.find("#search").send_keys(Keys.ENTER)
        self.until(lambda: len(self.history) == count + 1)

    @property
    def said(self) -> list[str]:
        """What the browser's console complains about."""
        return [line["message"] for line in self.browser.get_log("browser")]  # type: ignore[no-untyped-call]


@pytest.fixture
def page(browser: WebDriver, service: Process) -> Page:
    return Page(browser, service.client.url)


def recommended(service: Process, history: list[str], **more: Any) -> list[str]:
    body = {"history": history, "k": 10, **more}
    return [item["title"] for item in service.client.post("/v1/recommend", body).json["items"]]


def test_search_click_and_the_lists_change(page: Page, service: Process) -> None:
    assert page.titles("served") == recommended(service, [])
    assert "Most popular" in page.text("#served-title")
    assert not page.find("#undistilled-column").is_displayed()
    found = page.search("soap")
    assert len(found) == 5
    page.find("#search").send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    page.until(lambda: page.history)
    assert page.history[0] in found[1]
    first = next(item_id for item_id, title in ITEMS.items() if title == page.history[0])
    page.until(lambda: page.titles("served") == recommended(service, [first]))
    assert page.titles("undistilled") == recommended(service, [first], model="undistilled")

    chosen = page.titles("served")[2]
    page.browser.find_elements(By.CSS_SELECTOR, "#served .pick")[2].click()
    page.until(lambda: page.history == [page.history[0], chosen])
    second = next(item_id for item_id, title in ITEMS.items() if title == chosen)
    page.until(lambda: page.titles("served") == recommended(service, [first, second]))
    assert page.find("#undistilled-column").is_displayed()
    page.until(lambda: f"the first is {page.titles('served')[0]}" in page.attribute("#live", "textContent"))
    told = re.fullmatch(r"([\d.]+) ms in the service(?: · ([\d.]+) ms round trip)?", page.text("#time"))
    assert told is not None
    inside, both = told.groups()
    assert both is None or float(both) >= float(inside)

    page.find("#history button").click()
    page.until(lambda: page.titles("served") == recommended(service, [second]))
    page.find("#clear").click()
    page.until(lambda: page.titles("served") == recommended(service, []))
    assert page.said == []


def test_years_are_not_grouped_like_counts(page: Page) -> None:
    assert page.find("[data-between=year][data-edge=min]").get_attribute("placeholder") == "from 1977"
    page.until(lambda: "year 19" in page.text("#served"))
    assert not re.search(r"\b1,9\d\d\b", page.text("body"))


def test_the_keyboard_is_enough(page: Page, service: Process) -> None:
    body = page.find("body")
    body.send_keys("/")
    assert page.browser.switch_to.active_element == page.find("#search")
    page.search("rose")
    page.find("#search").send_keys(Keys.ENTER)
    page.until(lambda: page.history == ["Rose water"])
    page.until(lambda: page.titles("served") == recommended(service, ["plain"]))
    # From the search by Tab to the first recommendation, and on by Enter.
    for _ in range(30):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        if "pick" in str(page.browser.switch_to.active_element.get_attribute("class")):
            break
    chosen = page.titles("served")[0]
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)
    page.until(lambda: page.history == ["Rose water", chosen])
    page.until(lambda: page.titles("served") and page.titles("served")[0] != chosen)
    # The focus is where it was, on what stands there now.
    focused = page.browser.switch_to.active_element
    assert "pick" in str(focused.get_attribute("class"))
    assert page.titles("served")[0] in str(focused.get_attribute("aria-label"))
    page.find("#search").send_keys(Keys.BACKSPACE)
    page.until(lambda: page.history == ["Rose water"])
    page.search("soap")
    page.find("#search").send_keys(Keys.ESCAPE)
    page.until(lambda: not page.find("#found").is_displayed())


def test_titles_are_text_and_nothing_else(page: Page) -> None:
    for words in ("img", "script", "quoted"):
        page.add(words)
    assert [title for title in page.history if "<" in title] == NASTY
    page.until(lambda: page.titles("served"))
    page.find("#tune summary").click()
    assert "<b>Bold</b>" in page.text("#field-brand")
    page.browser.execute_script("document.querySelector('#history .icon').focus()")
    page.browser.find_elements(By.CSS_SELECTOR, "#served .icon")[0].click()
    page.until(lambda: page.find("#item").is_displayed())
    assert page.browser.title == "Explorer · llmd4rec"
    assert (
        page.browser.execute_script("return document.querySelectorAll('main img, main script, main b b').length") == 0
    )
    assert page.said == []


def test_filters_and_options(page: Page, service: Process) -> None:
    page.add("rose")
    page.find("#tune summary").click()
    page.browser.execute_script(
        "const s = document.querySelector('#field-brand'); s.value = 'Plain';"
        "s.dispatchEvent(new Event('input', { bubbles: true }))"
    )
    plain = recommended(service, ["plain"], filters={"where": {"brand": ["Plain"]}})
    page.until(lambda: page.titles("served") == plain)
    assert "1 filter" in page.text("#active")
    page.find('[data-between="price"][data-edge="min"]').send_keys("100")
    page.until(lambda: "Nothing fits" in page.text("#served"))
    page.find("#reset").click()
    page.until(lambda: page.titles("served") == recommended(service, ["plain"]))
    page.find("#filter-seen").click()
    page.until(lambda: page.titles("served") == recommended(service, ["plain"], filter_seen=False))


def test_an_example_and_why(page: Page, service: Process) -> None:
    example = service.client.get("/v1/examples").json["examples"][2]
    page.browser.execute_script(
        "const s = document.querySelector('#example'); s.value = '2'; s.dispatchEvent(new Event('change'))"
    )
    page.until(lambda: page.history == [item["title"] for item in example["history"]])
    page.until(lambda: example["next"]["title"] in page.attribute("#then", "textContent"))
    ids = [item["item_id"] for item in example["history"]]
    items = service.client.post("/v1/recommend", {"history": ids, "k": 50}).json["items"]
    place = [item["item_id"] for item in items].index(example["next"]["item_id"]) + 1
    assert f"Place {place} for the distilled model" in page.text("#then")
    reason = page.until(lambda: page.find("#served .why span"))
    assert any(title in str(reason.get_attribute("title")) for title in page.history)
    page.find("#tune summary").click()
    page.find("#why").click()
    page.until(lambda: not page.browser.find_elements(By.CSS_SELECTOR, ".why"))


def test_a_history_is_in_the_address(page: Page, service: Process) -> None:
    for words in ("quoted", "brush", "öl"):
        page.add(words)
    history = page.history
    page.browser.refresh()
    page.until(lambda: page.history == history)
    ids = [next(i for i, title in ITEMS.items() if title == row) for row in history]
    page.until(lambda: page.titles("served") == recommended(service, ids))
    for address in ("#%", "#no-such,plain", "#<img src=x>"):
        page.browser.get("about:blank")
        page.browser.get(service.client.url + "/" + address)
        page.until(lambda: page.titles("served"))
    assert page.history == []


def test_one_item_and_what_is_like_it(page: Page, service: Process) -> None:
    page.browser.find_elements(By.CSS_SELECTOR, "#served .icon")[0].click()
    title = page.titles("served")[0]
    page.until(lambda: page.text("#item-title") == title)
    item_id = next(i for i, t in ITEMS.items() if t == title)
    similar = service.client.post("/v1/similar", {"item_id": item_id, "k": 6}).json["items"]
    page.until(lambda: page.titles("similar") == [item["title"] for item in similar])
    assert "About number" in page.text("#item-fields")
    page.browser.find_elements(By.CSS_SELECTOR, "#similar .pick")[1].click()
    page.until(lambda: page.history == [similar[1]["title"]])
    assert not page.find("#item").is_displayed()


def test_on_a_phone(page: Page) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        page.add("rose")
        page.until(lambda: page.find("#switch").is_displayed())
        assert page.browser.execute_script("return document.documentElement.scrollWidth") == 390
        assert page.find("#served").is_displayed()
        assert not page.find("#undistilled").is_displayed()
        page.find('[data-show="undistilled"]').click()
        assert page.find("#undistilled").is_displayed()
        assert not page.find("#served").is_displayed()
        small = page.browser.execute_script(
            "return [...document.querySelectorAll('button, input:not([type=checkbox]), select')]"
            ".filter(e => e.offsetParent && e.getBoundingClientRect().height < 24).map(e => e.outerHTML)"
        )
        assert small == []  # nothing too small for a finger
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_name_and_enough_contrast(page: Page) -> None:
    """Names as assistive software computes them; contrast by WCAG's formula, in both colour schemes."""
    page.add("rose")
    page.find("#tune summary").click()
    nameless = page.browser.execute_script(
        """return [...document.querySelectorAll('button, input, select, [role=listbox], dialog, section')]
        .filter(e => !(e.ariaLabel || e.getAttribute('aria-labelledby') || e.labels?.length || e.textContent.trim()))
        .map(e => e.outerHTML)"""
    )
    assert nameless == []
    for scheme in ("light", "dark"):
        page.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        faint = page.browser.execute_script(CONTRAST)
        assert faint == [], scheme
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


CONTRAST = """
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const c = numbers(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c;
  }
  return numbers(getComputedStyle(document.body).backgroundColor);
};
const faint = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.offsetParent || e.closest('select, script')) continue;
  const [a, b] = [light(numbers(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) faint.push([e.textContent.slice(0, 40), ratio]);
}
return faint;
"""


def test_what_goes_wrong_is_said_kindly(models: Path, browser: WebDriver) -> None:
    with running(models / "both") as process:
        page = Page(browser, process.client.url)
        page.add("rose")
        page.until(lambda: page.titles("undistilled"))
        process.process.kill()
        process.process.wait(10)
        # By keyboard: the middle of a card, where a click would go, may belong to a reason.
        page.browser.find_elements(By.CSS_SELECTOR, "#served .pick")[0].send_keys(Keys.ENTER)
        page.until(lambda: page.find("#error").is_displayed())
        assert "The service does not answer." in page.text("#error")
        assert len(page.history) == 2  # nothing the person did is lost
        port = process.client.port
    with running(models / "both", "--port", port):
        page.find("#retry").click()
        page.until(lambda: not page.find("#error").is_displayed())
        page.until(lambda: page.history[1] not in page.titles("served"))


def test_a_key_is_asked_for(models: Path, browser: WebDriver) -> None:
    key = "a-key-of-twenty-three-x"
    with running(models / "bare", key=key) as process:
        browser.get(process.client.url)
        browser.execute_script("sessionStorage.clear()")
        page = Page.__new__(Page)
        page.browser = browser
        page.until(lambda: page.find("#key").is_displayed())
        page.find("#key-input").send_keys(Keys.ESCAPE)
        page.until(lambda: "without a key" in page.text("#error"))
        page.find("#retry").click()
        page.until(lambda: page.find("#key").is_displayed())
        page.find("#key-input").send_keys("wrong" + Keys.ENTER)
        page.until(lambda: page.find("#key").is_displayed())
        page.find("#key-input").send_keys(key + Keys.ENTER)
        page.until(lambda: page.titles("served"))
        assert not page.find("#key").is_displayed()
        assert not page.find("#switch").is_displayed()  # this export has one model only
        assert page.text("#served-title") == "Most popular"
        browser.execute_script("sessionStorage.clear()")
