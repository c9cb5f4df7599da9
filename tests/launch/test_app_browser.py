"""The local pages in a real browser: what the policy of the pages lets through, and what a visitor does first."""

import asyncio
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the pages need the extra app: pip install 'medreport-jax[app]'")
pytest.importorskip("selenium", reason="driving a browser needs selenium: pip install selenium")
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from launch.app.command import listening
from launch.app.models import Sources
from launch.app.pages import make_app

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SECONDS = 180  # the first answer of a page compiles

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no chromium with its driver on this machine: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The app, served by a thread."""
    with listening("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(make_app(Sources()), log_config=None, log_level="critical"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    """A window that keeps what its console says."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument("--window-size=1280,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    window.set_page_load_timeout(SECONDS)
    yield window
    said = window.get_log("browser")
    requested = re.findall(
        r'"url":"(http[^"]+)"', " ".join(entry["message"] for entry in window.get_log("performance"))
    )
    window.quit()
    assert said == []  # nothing was blocked by the policy, and no script failed
    assert requested
    assert all(url.startswith("http://127.0.0.1:") for url in requested)


def click(browser: webdriver.Chrome, selector: str) -> None:
    """Click, and wait for the page that answers."""
    browser.find_element(By.CSS_SELECTOR, selector).click()
    WebDriverWait(browser, SECONDS).until(lambda window: window.find_elements(By.ID, "result"))


def opacity(browser: webdriver.Chrome, selector: str) -> float:
    return float(browser.find_element(By.CSS_SELECTOR, selector).value_of_css_property("opacity"))


def test_an_example_is_standardized(browser, address):
    browser.get(address)
    click(browser, "button[value='0']")
    marks = browser.find_elements(By.CSS_SELECTOR, "mark.term.present")
    assert marks
    assert marks[0].value_of_css_property("background-color") != "rgba(0, 0, 0, 0)"  # the style sheet was let through


def test_a_typed_report_cannot_run_a_script(browser, address):
    browser.get(address)
    area = browser.find_element(By.ID, "text")
    area.send_keys("OD: drusen <script>document.title='run'</script><img src=x onerror=\"document.title='run'\">")
    area.send_keys(Keys.CONTROL, Keys.ENTER)
    WebDriverWait(browser, SECONDS).until(lambda window: window.find_elements(By.ID, "result"))
    assert browser.title == "Standardize · medreport app"


def test_words_show_where_they_looked_as_the_arrow_keys_walk_through_them(browser, address):
    browser.get(f"{address}/radiograph")
    click(browser, "button[value='13']")
    chosen = browser.find_element(By.CSS_SELECTOR, "input[name='word']:checked")
    number = int(chosen.get_attribute("value"))
    wait = WebDriverWait(browser, SECONDS)
    wait.until(lambda window: opacity(window, f".look-{number}") == pytest.approx(0.8))
    chosen.send_keys(Keys.ARROW_LEFT)
    before = browser.find_element(By.CSS_SELECTOR, "input[name='word']:checked").get_attribute("value")
    assert int(before) != number
    wait.until(lambda window: opacity(window, f".look-{before}") == pytest.approx(0.8))
    wait.until(lambda window: opacity(window, f".look-{number}") == 0)


def test_a_file_is_sent_as_it_is_dropped(browser, address, tmp_path: Path):
    (tmp_path / "x.png").write_bytes(b"not an image")
    browser.get(f"{address}/radiograph")
    browser.find_element(By.NAME, "images").send_keys(str(tmp_path / "x.png"))
    alert = WebDriverWait(browser, SECONDS).until(lambda window: window.find_element(By.CSS_SELECTOR, "[role=alert]"))
    assert alert.text.startswith("Image 1: expected a PNG, JPEG or DICOM image")
    browser.get_log("browser")  # which names the status 400


def test_two_files_are_compared(browser, address):
    browser.get(f"{address}/compare")
    click(browser, "button.try")
    circles = browser.find_elements(By.CSS_SELECTOR, ".holds circle")
    assert len(circles) == 2


def test_tokens_are_shaded(browser, address):
    browser.get(f"{address}/weights")
    click(browser, "button[value='0']")
    reddest = browser.find_element(By.CSS_SELECTOR, ".token.shade-20")
    assert "222, 48, 34" in reddest.value_of_css_property("background-color")


def test_a_page_of_another_site_cannot_send_a_form(browser, address):
    browser.get(
        f"data:text/html,<form method=post enctype=multipart/form-data action='{address}/'>"
        "<input name=text value=drusen><button>send</button></form>"
    )
    browser.find_element(By.TAG_NAME, "button").click()
    WebDriverWait(browser, SECONDS).until(lambda window: "Refused" in window.page_source)
    browser.get_log("browser")  # which names the status 403
