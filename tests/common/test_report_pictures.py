"""Images and attention on the run page: each image once, each word over it, and nothing else changed."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from common.phantoms.phantom import make_phantom
from common.report.page import Example, Page, render
from common.report.pictures import LARGEST_FILE, overlay_maps, picture
from tests.common.test_report_page import Reader, full_page

WORDS = ("small", "left", "effusion.")


def decode(uri: str) -> Image.Image:
    data = base64.b64decode(uri.partition(";base64,")[2], validate=True)
    return Image.open(io.BytesIO(data))


def alphas(maps: np.ndarray) -> np.ndarray:
    images = [decode(uri) for uri in overlay_maps(maps)]
    assert {image.mode for image in images} == {"RGBA"}
    return np.stack([np.asarray(image)[..., 3] for image in images])


def study(index: int = 0, words: tuple[str, ...] = WORDS, views: int = 2, size: int = 64) -> Example:
    phantom = make_phantom(0, index, size)
    rng = np.random.default_rng(index)
    attention = [(word, rng.random((views, 6, 5), np.float32)) for word in words]
    outputs = {"this run": " ".join(words), "before": ""}
    images = [phantom.frontal, phantom.lateral][:views]
    return Example(phantom.id, "", phantom.report, outputs, images=images, attention=attention)


def page(*examples: Example) -> Page:
    return Page("t", "v", "c", examples=examples)


def test_each_image_stands_in_the_page_once_and_has_a_text() -> None:
    html = render(page(study(0), study(1, views=1), study(2)))
    images = re.findall(r'\.(view-\d+-\d+) \{[^}]*background-image: url\("(data:image/jpeg[^"]+)"\)', html)
    assert [name for name, _ in images] == ["view-0-0", "view-0-1", "view-1-0", "view-2-0", "view-2-1"]
    assert len({uri for _, uri in images}) == html.count("data:image/jpeg") == 5
    labels = [value for name, value in Reader(html).attributes if name == "aria-label"]
    assert "Radiograph phantom-0-000002, view 2 of 2" in labels
    assert len([label for label in labels if label and label.startswith("Radiograph")]) == 5


def test_every_word_has_an_overlay_for_every_view() -> None:
    reader = Reader(render(page(study(0), study(1, views=1))))
    assert reader.tags.count("img") == len(WORDS) * 2 + len(WORDS) * 1
    assert reader.tags.count("figure") == len(WORDS) * 2
    overlays = [value for name, value in reader.attributes if name == "src" and value]
    assert {decode(uri).size for uri in overlays} == {(5, 6)}
    names = [value for name, value in reader.attributes if name == "class" and value and value.startswith("film ")]
    assert names.count("film view-0-0") == names.count("film view-1-0") == 1 + len(WORDS)


def test_the_first_two_examples_are_open_and_those_behind_the_fold_keep_their_own_images() -> None:
    html = render(page(*(study(index) for index in range(6))))
    assert re.findall(r'<details class="looks"( open)?>', html) == [" open"] * 2 + [""] * 4
    cards = html.split("<article")[1:]
    assert [set(re.findall(r"view-(\d)-", card)) for card in cards] == [{str(index)} for index in range(6)]


def test_attention_is_opaque_where_it_is_greatest_and_invisible_where_it_is_least() -> None:
    maps = np.random.default_rng(0).uniform(3, 40, (2, 6, 6))
    alpha = alphas(maps)
    assert alpha.argmax() == maps.argmax()
    assert alpha.argmin() == maps.argmin()
    assert (alpha.max(), alpha.min()) == (255, 0)
    ramp = np.array([[[10, 11], [12, 14]], [[10, 10], [10, 12]]]) * 1e-6
    np.testing.assert_array_equal(alphas(ramp), [[[0, 64], [128, 255]], [[0, 0], [0, 128]]])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0, 0.1, 7])
def test_equal_attention_everywhere_is_invisible(value: float) -> None:
    assert not alphas(np.full((2, 3, 4), value, np.float32)).any()


def test_words_and_names_are_escaped() -> None:
    hostile = replace(study(0, ("<b>", '"><script>')), id='"><script>alert(1)</script>')
    html = render(page(hostile))
    reader = Reader(html)
    assert "<b>" in reader.words()
    assert "&lt;b&gt;" in html
    assert not {"b", "script"} & set(reader.tags)


def test_a_page_of_texts_has_no_trace_of_pictures() -> None:
    html = render(full_page())
    assert not re.search(r"data:image|class=\"(films|study|looks|word)|\.films|picture|view-0", html)
    assert html.count("<style>") == 1
    assert html.count("<h4>Source</h4>") == 6
    assert "for the same source" in html


def test_a_study_shows_no_source_and_without_attention_no_words() -> None:
    html = render(page(replace(study(), attention=())))
    assert "Source" not in html
    assert "Where the model looked" not in html
    assert html.count("data:image/") == 2


def test_without_a_reference_a_report_is_shown_as_it_is() -> None:
    html = render(page(replace(study(), reference=None)))
    assert " ".join(WORDS) in html
    assert not re.search("<ins>|<del>|Reference|exact</span>|the reference", html)
    assert "<ins>" in render(page(study()))


def test_images_load_nothing_from_elsewhere() -> None:
    html = render(page(study()))
    assert not re.search(r"https?:|@import", html)
    assert {uri[:11] for uri in re.findall(r'(?:url\(|src=)"([^"]+)"', html)} == {"data:image/"}


@pytest.mark.parametrize(
    ("shape", "shown"), [((96, 96), (96, 96)), ((224, 200), (224, 200)), ((1024, 640), (320, 200))]
)
def test_pictures_are_small_and_keep_their_proportion(shape: tuple[int, int], shown: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    drawn = picture(noise)
    image = decode(drawn.uri)
    assert (image.height, image.width) == (drawn.height, drawn.width) == shown
    assert image.mode == "L"
    assert len(base64.b64decode(drawn.uri.partition(",")[2])) <= 1.5 * LARGEST_FILE


@pytest.mark.parametrize("size", [96, 224, 512])
def test_a_radiograph_is_shown_as_it_is(size: int) -> None:
    image = make_phantom(0, 3, size).frontal
    drawn = picture(image)
    shown = np.asarray(decode(drawn.uri), np.float32)
    expected = np.asarray(Image.fromarray(image).resize((drawn.width, drawn.height), Image.Resampling.BOX), np.float32)
    assert np.abs(shown - expected).mean() < 3
    assert len(drawn.uri) < LARGEST_FILE * 4 / 3 + 40


def test_a_page_of_a_dozen_studies_stays_under_three_megabytes() -> None:
    words = tuple(f"word{index}" for index in range(40))
    html = render(page(*(study(index, words, size=224) for index in range(12))))
    assert html.count("data:image/png") == 12 * 40 * 2
    assert len(html.encode()) < 3_000_000


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.ones((1, 6, 6)), r"phantom-0-000000: attention of 'left' has shape \(1, 6, 6\); expected \(2, h, w\)"),
        (np.ones((2, 36)), r"shape \(2, 36\)"),
        (np.ones((2, 0, 6)), r"shape \(2, 0, 6\)"),
        (np.full((2, 6, 6), np.nan), "not finite"),
    ],
)
def test_attention_that_does_not_fit_its_images_is_refused(maps: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(study(), attention=[("left", maps)])
