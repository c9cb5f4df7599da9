"""The Indiana University chest X-ray collection (Open-i), read from its XML archive as published.

A study has free-text sections and human-coded standard terms (`MeSH/major`, such as
`Opacity/lung/base/left/mild`). Standardization goes from FINDINGS and IMPRESSION to the terms. Source:
Demner-Fushman et al., JAMIA 23(2), 2016.
"""

import gzip
import hashlib
import tarfile
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.cleaning import clean_report
from common.data.records import Quarantine, Record, ReportPair, check_splits
from common.errors import UserError


@dataclass(frozen=True)
class OpeniImage:
    """One radiograph of a study: its id in the image archive (`CXR1000_IM-0003-1001`) and caption."""

    id: str
    caption: str


@dataclass(frozen=True)
class OpeniStudy:
    """One report. An absent section is an empty string; `codes` are distinct and sorted."""

    id: str
    comparison: str
    indication: str
    findings: str
    impression: str
    codes: tuple[str, ...]
    images: tuple[OpeniImage, ...]


def read_openi(path: str | Path) -> list[OpeniStudy]:
    """All studies of the archive `NLMCXR_reports.tgz`, or of a directory of its XML files, by number.

    The archive is streamed, nothing is unpacked to disk. Raises UserError naming archive and member where the
    archive is missing, damaged or empty, a member is not UTF-8 or no Open-i report, or an id occurs twice.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path} does not exist; expected the archive NLMCXR_reports.tgz or a directory of its XML files"
        )
    studies: dict[str, OpeniStudy] = {}
    origins: dict[str, str] = {}
    for origin, data in _directory_files(path) if path.is_dir() else _archive_members(path):
        study = _parse_study(data, origin)
        if study.id in studies:
            raise UserError(f"{origin}: id {study.id} is already that of {origins[study.id]}; keep one of them")
        studies[study.id] = study
        origins[study.id] = origin
    if not studies:
        raise UserError(f"{path} holds no .xml report; expected members such as ecgen-radiology/1.xml")
    return sorted(studies.values(), key=lambda study: (len(study.id), study.id))


def openi_pairs(studies: Iterable[OpeniStudy], quarantine: Quarantine) -> list[ReportPair]:
    """Free text -> codes, one a line in sorted order; studies that lack either side are quarantined.

    The free text is `FINDINGS: ...` and `IMPRESSION: ...`, a line each, less a section that the study lacks.
    """
    pairs = []
    for study in studies:
        sections = {"FINDINGS": study.findings, "IMPRESSION": study.impression}
        source = "\n".join(f"{name}: {text}" for name, text in sections.items() if text)
        if not source:
            quarantine.add(study.id, "no FINDINGS and no IMPRESSION")
        elif not study.codes:
            quarantine.add(study.id, "no MeSH/major code")
        else:
            pairs.append(ReportPair(study.id, source, "\n".join(study.codes)))
    if not pairs:
        raise UserError("no study has both report text and MeSH/major codes; expected reports of the Open-i collection")
    return pairs


def read_test_ids(path: str | Path) -> frozenset[str]:
    """Ids of the test studies, one a line (`openi-testset.txt`). Raises UserError for a bad or empty file."""
    try:
        ids = frozenset(Path(path).read_text(encoding="utf-8").split())
    except OSError as error:
        raise UserError(f"cannot read the test ids {path}: {error.strerror}; expected openi-testset.txt") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; expected ids such as CXR10, one a line") from error
    if not ids:
        raise UserError(f"{path} holds no id; expected ids such as CXR10, one a line")
    return ids


def openi_splits(
    records: Sequence[Record], test_ids: Collection[str], validation: int = 200, seed: int = 0
) -> dict[str, list[Record]]:
    """`train`, `validation` and `test` records in the given order; test ids without a record are ignored.

    Validation studies are those whose seeded hash is smallest: the choice depends on neither the order of the
    records nor a random generator's version, and one record more or less moves at most one other. Raises
    UserError where an id occurs twice, no test id matches, or nothing remains to train on.
    """
    test_ids = frozenset(test_ids)
    if not any(record.id in test_ids for record in records):
        raise UserError(
            f"none of the {len(test_ids)} test ids is among the {len(records)} records; expected ids such as CXR10"
        )
    rest = sorted(
        {record.id for record in records} - test_ids,
        key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest(),
    )
    if not 0 < validation < len(rest):
        raise UserError(
            f"cannot take {validation} validation records from the {len(rest)} outside the test set; "
            "expected at least 1, and fewer than there are"
        )
    validation_ids = frozenset(rest[:validation])
    held_out = test_ids | validation_ids
    splits = {
        "train": [record for record in records if record.id not in held_out],
        "validation": [record for record in records if record.id in validation_ids],
        "test": [record for record in records if record.id in test_ids],
    }
    check_splits(splits)
    return splits


def _directory_files(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.glob("*.xml")):
        try:
            yield str(file), file.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error


def _archive_members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.name.endswith(".xml") else None
                    if file is not None:
                        yield f"{path}: {member.name}", file.read()
            # tarfile takes a damaged header for the end of the archive. Reading on to the end of the gzip
            # stream checks its length and checksum, so a damaged or cut file never passes for a small one.
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(
            f"{path} is not a whole gzipped tar archive ({error}); "
            "expected NLMCXR_reports.tgz, fetch it again if it was cut short"
        ) from error


def _parse_study(data: bytes, origin: str) -> OpeniStudy:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{origin}: byte {error.start} is not UTF-8; expected an Open-i XML report in UTF-8") from error
    # Reports declare no document type, and without one there are no entities that could expand without end.
    if "<!DOCTYPE" in text:
        raise UserError(f"{origin}: declares a document type; expected a plain Open-i report, remove the declaration")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(
            f"{origin}: not well-formed XML ({error}); restore the file from the original archive"
        ) from error
    identity = root.find("uId")
    study_id = "" if identity is None else identity.get("id", "").strip()
    if not study_id:
        raise UserError(f'{origin}: no <uId id="CXR..."/> under the root; expected an Open-i report')
    codes = {" ".join((element.text or "").split()) for element in root.iterfind("MeSH/major")}
    return OpeniStudy(
        id=study_id,
        comparison=_section(root, "COMPARISON"),
        indication=_section(root, "INDICATION"),
        findings=_section(root, "FINDINGS"),
        impression=_section(root, "IMPRESSION"),
        codes=tuple(sorted(codes - {""})),
        images=tuple(
            OpeniImage(image.get("id", ""), _text(image.find("caption"))) for image in root.iterfind("parentImage")
        ),
    )


def _section(root: ElementTree.Element, label: str) -> str:
    texts = (_text(element) for element in root.iter("AbstractText") if element.get("Label") == label)
    return "\n".join(text for text in texts if text)


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else clean_report("".join(element.itertext()))
