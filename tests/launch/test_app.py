"""The local pages: what they show, and what they say of bad input."""

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the pages need the extra app: pip install 'medreport-jax[app]'")
from starlette.testclient import TestClient

from launch.app import comparison, forms, radiograph, standardize, weights, worker
from launch.app.models import Sources
from launch.app.pages import make_app

HERE = "http://127.0.0.1:8765"
PATHS = ("/", "/radiograph", "/compare", "/weights")
SCRIPT = "<script>alert(1)</script>"
ROW = '{"id": "a", "prediction": "no pneumothorax", "reference": "Moderate left pleural effusion."}\n'
NO_FILE = {"none": (None, "")}  # so that a form without a file is sent as the pages send it


@pytest.fixture(scope="module")
def app() -> Iterator[TestClient]:
    with TestClient(make_app(Sources()), base_url=HERE, headers={"origin": HERE}) as client:
        yield client


def send(client: TestClient, path: str, *, status: int = 200, files=None, **texts: str) -> str:
    """The page that answers a form."""
    answer = client.post(path, data=texts, files=files or NO_FILE)
    assert answer.status_code == status, answer.text
    return answer.text


def error_of(page: str) -> str:
    return re.search(r'role="alert"><bdi>(.*?)</bdi>', page, re.DOTALL)[1]


def png(side: int = 80) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(side * side, dtype=np.uint8).reshape(side, side)).save(buffer, "PNG")
    return buffer.getvalue()


# ---- pages


@pytest.mark.parametrize("path", PATHS)
def test_a_page_loads_nothing_from_elsewhere_and_says_that_it_is_for_research(app, path):
    answer = app.get(path)
    assert answer.status_code == 200
    assert "not for diagnosis" in answer.text
    addresses = re.findall(r"""(?:src|href|action)="([^"]+)""", answer.text)
    assert addresses
    assert all(address.startswith(("/", "data:")) for address in addresses)
    assert " style=" not in answer.text  # which the policy would not let through
    assert "<script>" not in answer.text


def test_a_report_is_standardized_with_its_terms_and_changes(app):
    page = send(app, "/", text="OD: drusen, no ME.")
    assert '<mark class="term present" title="drusen' in page
    assert '<mark class="term absent" title="macular oedema · right eye · absent' in page
    assert "<del>OD</del>" in page
    assert "Right eye" in page
    assert re.search(r"\d of \d kept", page)


def test_the_statements_of_both_sides_are_compared():
    terms = standardize.load_terminology()
    before, after = (standardize.find_terms(text, terms) for text in ("OD: drusen, no ME.", "Right eye: ME."))
    found = [
        (line.name, line.before, line.after, line.fate) for line in standardize.statement_lines(before, after, terms)
    ]
    assert found == [("macular oedema", "absent", "present", "changed"), ("drusen", "present", "", "lost")]


def test_an_example_is_chosen_by_its_number(app):
    assert standardize.EXAMPLES[1][1] in send(app, "/", example="1", text="something else")


def test_a_phantom_is_reported_with_a_map_for_each_word_and_view(app):
    page = send(app, "/radiograph", example="13")
    words = len(re.findall(r'name="word"', page))
    assert words > 5
    assert len(re.findall(r'class="look look-\d+"', page)) == 2 * words
    assert page.count(" checked") == 1
    assert "Moderate left pleural effusion is identified." in page


def test_an_uploaded_image_is_reported(app):
    page = send(app, "/radiograph", files={"images": ("x.png", png(), "image/png")}, indication=SCRIPT)
    assert page.count('class="view"') == 1
    assert "What was drawn" not in page
    assert SCRIPT not in page


def test_two_files_are_compared_study_by_study(app):
    page = send(app, "/compare", example="scanners")
    assert "Paired differences over 60 studies" in page
    assert "promptmrg/F1" in page
    assert page.count("study-card") == comparison.SHOWN
    counts = [int(number) for number in re.findall(r">(\d+) findings? differ", page)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 0


def test_systems_of_files_with_one_name_are_told_apart(app):
    other = ROW.replace("no pneumothorax", "moderate left pleural effusion")
    page = send(app, "/compare", files={"first": ("p.jsonl", ROW), "second": ("p.jsonl", other)})
    assert "p (A)" in page
    assert "p (B)" in page
    marks = re.findall(r'<div class="(right|missed|invented)"><dt>. \w+</dt><dd lang="en">([^<]+)</dd>', page)
    assert ("missed", "Pleural Effusion") in marks  # by the first
    assert ("right", "Pleural Effusion") in marks  # by the second


def test_tokens_are_shaded_by_their_weight(app):
    page = send(
        app, "/weights", reference="Left pleural effusion.", reports="Left pleural effusion.\nThe lungs are clear."
    )
    shades = {int(level) for level in re.findall(r"token shade-(\d+)", page)}
    assert {0, weights.LEVELS} <= shades
    assert "label F1 1.00" in page
    assert "label F1 0.00" in page


def test_one_report_alone_has_no_tfidf(app):
    page = send(app, "/weights", reference="Left pleural effusion.", reports="Left pleural effusion.")
    assert "with one alone, every weight is 1" in page


# ---- text of others


@pytest.mark.parametrize(
    ("path", "texts", "files"),
    [
        ("/", {"text": f"OD: drusen {SCRIPT}"}, None),
        ("/weights", {"reference": f"effusion {SCRIPT}", "reports": f"effusion {SCRIPT}"}, None),
        ("/compare", {}, {side: (f"{SCRIPT}.jsonl", ROW.replace("left", SCRIPT)) for side in ("first", "second")}),
    ],
)
def test_no_text_becomes_part_of_a_page(app, path, texts, files):
    page = send(app, path, files=files, **texts)
    assert "alert(1)" in page
    assert "<script>" not in page


def test_text_that_hides_is_made_visible(app):
    assert "[U+202E]" in send(app, "/", text="OD: drusen \u202e")


# ---- bad input


@pytest.mark.parametrize(
    ("path", "texts", "said"),
    [
        ("/", {"text": "  \n"}, "There is no report yet"),
        ("/", {"text": "OD\0"}, "The text, line 1: contains a NUL character"),
        ("/", {"text": "drusen " * 40_000}, "The form cannot be read: Part exceeded maximum size"),
        ("/radiograph", {}, "There is no image yet"),
        ("/compare", {}, "File A is missing"),
        ("/weights", {"reports": "x"}, "There is no reference yet"),
        ("/weights", {"reference": "x"}, "There is no report yet"),
        ("/weights", {"reference": "x", "reports": "a\n" * 17}, "These are 17 reports; at most 16"),
    ],
)
def test_what_is_missing_is_said_in_a_line(app, path, texts, said):
    error = error_of(send(app, path, status=400, **texts))
    assert error.startswith(said)
    assert "\n" not in error


def test_what_was_typed_stays_where_something_else_is_wrong(app):
    assert "<textarea" in (page := send(app, "/weights", status=400, reports="kept as it is"))
    assert "kept as it is" in page


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not an image", "Image 1: expected a PNG, JPEG or DICOM image, found 12 bytes of something else"),
        (png()[:-20], "Image 1: not a complete PNG image"),
        (b"\0" * 128 + b"DICM" + b"\0" * 40, "Image 1: a DICOM file with no image"),
    ],
)
def test_what_is_no_image_is_refused(app, content, said):
    if b"DICM" in content:
        pytest.importorskip("pydicom")
    page = send(app, "/radiograph", status=400, files={"images": ("patient name.png", content)})
    assert error_of(page).startswith(said)
    assert "patient name" not in page


def test_more_views_than_a_study_has_are_refused(app, monkeypatch):
    monkeypatch.setattr(radiograph, "MOST_VIEWS", 1)
    files = [("images", (f"{number}.png", png())) for number in range(2)]
    assert error_of(send(app, "/radiograph", status=400, files=files)).startswith("These are 2 images")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("{", "B · b.jsonl, line 1: not JSON"),
        ('{"id": "a"}', "B · b.jsonl, line 1: key &#39;prediction&#39; is missing"),
        (ROW.replace('"a"', '"b"'), "B · b.jsonl: has no row of id &#39;a&#39;, which A · a.jsonl has"),
        (ROW.replace("left", "right"), "B · b.jsonl: the reference of id &#39;a&#39; is another one"),
        (ROW + ROW, "B · b.jsonl, line 2: id &#39;a&#39; duplicates line 1"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(app, second, said):
    page = send(app, "/compare", status=400, files={"first": ("a.jsonl", ROW), "second": ("b.jsonl", second)})
    assert error_of(page).startswith(said)


def test_files_of_too_many_rows_are_refused(app, monkeypatch):
    monkeypatch.setattr(comparison, "MOST_ROWS", 1)
    files = {side: ("p.jsonl", ROW + ROW.replace('"a"', '"b"')) for side in ("first", "second")}
    assert "2 rows; at most 1 here" in error_of(send(app, "/compare", status=400, files=files))


def test_a_form_that_is_too_large_is_refused(app, monkeypatch):
    monkeypatch.setattr(forms.read_form, "__defaults__", (1 << 20,))
    page = send(app, "/radiograph", status=413, files={"images": ("x.png", b"x" * (2 << 20))})
    assert error_of(page) == "These files have more than 1 MB together; choose smaller ones."


def test_a_form_sent_in_another_way_is_refused(app):
    answer = app.post("/", content=b"text=drusen", headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 400
    answer = app.post("/", content=b"--", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400
    assert "The form cannot be read" in answer.text


def test_a_damaged_form_is_a_line(app):
    generator = np.random.default_rng(0)
    whole = (
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        b'\x89PNG\r\n\x1a\n\r\n--x\r\nContent-Disposition: form-data; name="indication"\r\n\r\ncough\r\n--x--\r\n'
    )
    for _ in range(60):
        body = bytearray(whole)
        for place in generator.integers(len(body), size=3):
            body[place] = generator.integers(256)
        answer = app.post(
            "/compare", content=bytes(body[: generator.integers(1, len(body) + 1)]),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )  # fmt: skip
        assert answer.status_code == 400
        assert error_of(answer.text)


def test_a_model_that_is_not_there_is_said_on_the_page(tmp_path):
    with TestClient(make_app(Sources(retsta=tmp_path)), base_url=HERE, headers={"origin": HERE}) as client:
        assert "contains no model" in error_of(send(client, "/", status=400, text="OD: drusen"))


def test_a_fault_says_where_it_is_without_any_text(app, monkeypatch, capfd):
    def fail(*_, **__):
        raise ValueError("secret report")

    monkeypatch.setattr(standardize, "find_terms", fail)
    page = send(app, "/", status=500, text="OD: secret drusen")
    said = "".join(capfd.readouterr())
    assert "Something went wrong in the app itself" in page
    assert "ValueError at" in said
    assert "secret" not in said


def test_a_full_queue_is_said(app, monkeypatch):
    monkeypatch.setattr(worker, "MOST_WAITING", 0)
    answer = app.get("/")
    assert answer.status_code == 503
    assert error_of(answer.text).startswith("The app is busy")


def test_what_there_is_no_page_for_is_said(app):
    assert error_of(app.get("/nothing").text) == "There is no such page."
    assert error_of(app.put("/").text) == "That page does not take such a request."
