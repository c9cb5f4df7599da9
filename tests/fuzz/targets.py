"""What is fuzzed: each reader of files from outside, with small valid files to damage."""

import gzip
import hashlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from PIL import Image
from safetensors.numpy import save

from common.clinical.labelled_reports import read_labeled
from common.config import read_config
from common.data.chexpert_plus import TABLE, read_chexpert_plus
from common.data.clip_tokenizer import MERGES, ClipTokenizer
from common.data.ffa_ir import read_ffa_ir
from common.data.images import read_image
from common.data.mimic import read_mimic_cxr
from common.data.odir import read_odir
from common.data.openi import read_openi, read_test_ids
from common.data.padchest import read_padchest
from common.data.pieces import byte_of_character
from common.data.readers import read_annotation, read_image_rows
from common.data.records import Quarantine
from common.data.splits import at_hand
from common.data.tokenizers import load_tokenizer
from common.errors import UserError
from common.io import stored_files, table_batches, table_files
from common.io.safetensors import open_tensors
from common.io.store_objects import Address
from common.io.stored_files import StoredObject
from common.io.torch_archive import read_archive
from common.models.qwen2_vl_weights import config_from_directory as vision_config
from common.models.qwen2_weights import config_from_directory
from common.training.logs import read_metrics
from deer_jax.select import read_studies
from retsta_jax.config import EMBEDDED_BASE, RetstaConfig
from retsta_jax.pairs import read_pairs
from retsta_jax.reports import read_reports
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED
from tests.common import test_chexpert_plus, test_mimic, test_openi, test_published_layouts
from tests.dicom_files import SHIPPED as SHIPPED_DICOM
from tests.dicom_files import big_endian, dicom_bytes, lookup_table
from tests.tf_records import as_tfrecord

PADCHEST_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
# Of those that ship with pydicom: RLE, JPEG 2000, JPEG-LS, JPEG and deflated.
DAMAGED_DICOM = (
    "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_08.dcm",
    "SC_rgb_small_odd_jpeg.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm", "JPGExtended.dcm", "image_dfl.dcm",
)  # fmt: skip
ASSETS = Path(__file__).parents[2]
ARRAY_RECORD, TFRECORD = "x-all.array_record-00000-of-00001", "x-all.tfrecord-00000-of-00001"
SECONDS = itertools.count(1)  # some readers cache what they read by the time and size of the file


class Target(NamedTuple):
    """A reader and the files to damage for it."""

    name: str  # of the file
    seeds: Callable[
        [Path], list[bytes]
    ]  # valid contents; puts whatever else the reader needs into the given empty folder
    read: Callable[[Path], object]


def _rows(*rows: Mapping[str, object]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _text(text: str) -> Callable[[Path], list[bytes]]:
    return lambda _: [text.encode()]


def _file(path: Path) -> Callable[[Path], list[bytes]]:
    return lambda _: [path.read_bytes()]


def _images(folder: Path) -> list[bytes]:
    found = []
    grey = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) * 7)
    deep = Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800)
    for image, kind in ((grey, "png"), (grey, "jpeg"), (deep, "png"), (grey.convert("RGB"), "png")):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def _dicoms(folder: Path) -> list[bytes]:
    """Files in each way of writing and compressing pixels, of at most a few thousand bytes."""
    pixels = np.arange(48, dtype=np.uint16).reshape(6, 8) * 80
    table = lookup_table(np.arange(4096)[::16], 0, 12)
    plain = [
        dicom_bytes(pixels, PhotometricInterpretation="MONOCHROME1", WindowCenter="2000", WindowWidth="900"),
        dicom_bytes(pixels.astype(np.int16), RescaleSlope="2", RescaleIntercept="-9", PixelPaddingValue=-2),
        dicom_bytes(pixels, VOILUTSequence=[table], ModalityLUTSequence=[table]),
        dicom_bytes(np.arange(72, dtype=np.uint8).reshape(4, 6, 3)),
        big_endian(pixels),
    ]
    return plain + [(SHIPPED_DICOM / name).read_bytes() for name in DAMAGED_DICOM]


def _with_image(content: bytes) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        (folder / "a.png").write_bytes(_images(folder)[0])
        return [content]

    return seeds


def _mimic(folder: Path) -> list[bytes]:
    return [(test_mimic.write_layout(folder) / "mimic-cxr-2.0.0-split.csv").read_bytes()]


def _chexpert_plus(folder: Path) -> list[bytes]:
    return [(test_chexpert_plus.write_layout(folder) / TABLE).read_bytes()]


def _padchest(folder: Path) -> list[bytes]:
    return [(test_published_layouts.padchest(folder) / PADCHEST_TABLE).read_bytes()]


def _ffa_ir(folder: Path) -> list[bytes]:
    return [test_published_layouts.ffa_ir(folder).read_bytes()]


def _odir(folder: Path) -> list[bytes]:
    return [test_published_layouts.odir(folder).read_bytes()]


def _both_contrasts(path: Path) -> None:
    read_image(path, colour=True)
    read_image(path, dicom_contrast="mimic-cxr-jpg")


def _tensors(path: Path) -> None:
    for tensor in open_tensors(path.parent).values():
        tensor.read(tuple(slice(None) for _ in tensor.shape))


def _safetensors(folder: Path) -> list[bytes]:
    return [save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.weight": np.zeros(4, np.int64)})]


def _parquet(folder: Path) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, table = [], pa.table({name: [str(value), "en"] for name, value in PAIR.items()})
    for options in ({"compression": "none"}, {"compression": "zstd", "use_dictionary": False}):
        pq.write_table(table, buffer := io.BytesIO(), **options)
        found.append(buffer.getvalue())
    return found


def _arrow(folder: Path) -> list[bytes]:
    import pyarrow as pa

    table = pa.table({name: [str(value), "en"] for name, value in PAIR.items()})
    with pa.ipc.new_stream(buffer := io.BytesIO(), table.schema) as stream:
        stream.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    return [buffer.getvalue()]


def _image_table() -> Any:
    import pyarrow as pa

    views = pa.array([[{"bytes": b"first", "path": None}, {"bytes": b"second", "path": None}], [{"bytes": b"third"}]])
    return pa.table({"images": views, "report": ["clear", "Mild edema."], "split": ["train", "test"]})


def _parquet_images(folder: Path) -> list[bytes]:
    import pyarrow.parquet as pq

    pq.write_table(_image_table(), buffer := io.BytesIO(), row_group_size=1)
    return [buffer.getvalue()]


def _arrow_images(folder: Path) -> list[bytes]:
    import pyarrow as pa

    table = _image_table()
    with pa.ipc.new_stream(buffer := io.BytesIO(), table.schema) as stream:
        stream.write_table(table, 1)
    (folder / "dataset_info.json").write_text("{}")
    return [buffer.getvalue()]


def _array_record(folder: Path) -> list[bytes]:
    """A data set of TFDS with one file of the pairs of `_image_table`, without TFDS."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    text, image = {"text": {}}, {"sequence": {"feature": {"image": {}}}}
    features = {"images": image, "report": text, "split": text}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    splits = [{"name": "all", "shardLengths": ["2"]}]
    (folder / "dataset_info.json").write_text(json.dumps({"name": "x", "fileFormat": "array_record", "splits": splits}))
    writer = ArrayRecordWriter(str(folder / ARRAY_RECORD), "group_size:1")
    for row in _image_table().to_pylist():
        example = tf_example_pb2.Example()
        values = {"images": [view["bytes"] for view in row["images"]], "report": [row["report"].encode()]}
        for name, value in (values | {"split": [row["split"].encode()]}).items():
            example.features.feature[name].bytes_list.value.extend(value)
        writer.write(example.SerializeToString())
    writer.close()
    return [(folder / ARRAY_RECORD).read_bytes()]


def _tfrecord(folder: Path) -> list[bytes]:
    _array_record(folder)
    return [(as_tfrecord(folder) / TFRECORD).read_bytes()]


def _tfds_file(name: str) -> Target:
    def seeds(folder: Path) -> list[bytes]:
        _array_record(folder)
        return [(folder / name).read_bytes()]

    return Target(name, seeds, lambda path: _read_images(path.parent))


def _read_stored_images(path: Path) -> None:
    """As `_read_images`, of files in a store, which gives the bytes of those on the disk."""

    def stored(file: Path) -> StoredObject | None:
        content = file.read_bytes() if file.suffix in stored_files.SUFFIXES else b""
        tag = hashlib.sha256(content).hexdigest()
        return StoredObject(Address("s3", "bucket", str(file)), tag, len(content)) if content else None

    def reader(address: Address, tag: str) -> Callable[[int, int], bytes]:
        return lambda start, end: Path(address.key).read_bytes()[start:end]

    with (
        mock.patch.object(table_batches, "stored_object", stored),
        mock.patch.object(table_files, "stored_object", stored),
        mock.patch.object(stored_files, "range_reader", reader),
    ):
        _read_images(path)


def _read_images(path: Path) -> None:
    for studies in read_image_rows(path, None, Quarantine()).values():
        for study in studies:
            at_hand(study.images)


def _torch_archive(folder: Path) -> list[bytes]:
    """What `torch.save` writes of {"w": tensor of 4 floats}, without PyTorch."""
    pickled = (
        b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03"
        b"ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x04tq\x07QK\x00K\x04\x85q\x08K\x01"
        b"\x85q\t\x89ccollections\nOrderedDict\nq\n)Rq\x0btq\x0cRq\rs."
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("data.pkl", pickled), ("byteorder", b"little"), ("data/0", bytes(16)), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", data)
    return [buffer.getvalue()]


def _archive(path: Path) -> None:
    for tensor in read_archive(path).values():
        tensor.read(tuple(slice(None) for _ in tensor.shape))


def _clip_vocabulary() -> bytes:
    merges = list(itertools.product(byte_of_character(), repeat=2))[:MERGES]
    return gzip.compress("\n".join(["version", *map(" ".join, merges)]).encode())


def _openi(folder: Path) -> list[bytes]:
    return [gzip.compress(test_openi.tar_bytes({f"ecgen-radiology/{n}.xml": test_openi.report(n) for n in (1, 2)}))]


STUDY = {"id": "CXR1_1", "report": "The heart is normal.", "image_path": ["a.png"]}
ROW = {"id": 1, "images": ["a.png"], "report": "双眼未见异常。", "split": "train", "labels": ["x"], "language": "zh"}
PAIR = {"id": "p1", "source": "OD: few drusen.", "target": "Right eye: drusen.", "language": "en"}
LABELS = [0, 1, 2, 3] * 3 + [0, 1]

TARGETS = {
    "openi-report": Target("1.xml", lambda _: [test_openi.report(1)], lambda path: read_openi(path.parent)),
    "openi-archive": Target("reports.tgz", _openi, read_openi),
    "openi-test-ids": Target("ids.txt", _text("CXR1\nCXR2\n"), read_test_ids),
    "annotation": Target(
        "annotation.json",
        _with_image(json.dumps({split: [STUDY | {"id": split}] for split in ("train", "val", "test")}).encode()),
        lambda path: read_annotation(path, path.parent, Quarantine()),
    ),
    "image-rows": Target(
        "rows.jsonl",
        _with_image(_rows(ROW, ROW | {"id": 2, "split": "test"})),
        lambda path: read_image_rows(path, path.parent, Quarantine()),
    ),
    "mimic-cxr": Target(
        "mimic-cxr-2.0.0-split.csv", _mimic, lambda path: read_mimic_cxr(path.parent, Quarantine())
    ),
    "chexpert-plus": Target(TABLE, _chexpert_plus, lambda path: read_chexpert_plus(path.parent, Quarantine())),
    "image": Target("image", _images, read_image),
    "dicom": Target("image.dcm", _dicoms, _both_contrasts),
    "padchest": Target(PADCHEST_TABLE, _padchest, lambda path: read_padchest(path.parent, Quarantine())),
    "ffa-ir": Target("ffair_annotation.json", _ffa_ir, lambda path: read_ffa_ir(path, path.parent, Quarantine())),
    "odir": Target("odir.csv", _odir, lambda path: read_odir(path, path.parent, Quarantine())),
    "safetensors": Target("model.safetensors", _safetensors, _tensors),
    "torch-archive": Target("weights.pt", _torch_archive, _archive),
    "sentencepiece": Target(
        "tokenizer.model", _file(EMBEDDED_BASE / "tokenizer.model"), lambda path: load_tokenizer(path).encode("Drusen")
    ),
    "tokenizer-json": Target(
        "tokenizer.json",
        _file(ASSETS / "deer_jax" / "assets" / "base" / "tokenizer.json"),
        lambda path: load_tokenizer(path.parent).encode("clear"),
    ),
    "word-vocabulary": Target(
        "words.json",
        _file(ASSETS / "unicross_jax" / "assets" / "clip" / "words.json"),
        lambda path: load_tokenizer(path).encode("clear"),
    ),
    "clip-vocabulary": Target(
        "bpe.txt.gz",
        lambda _: [_clip_vocabulary()],
        lambda path: ClipTokenizer(path),
    ),
    "model-config": Target(
        "config.json", _file(EMBEDDED_BASE / "config.json"), lambda path: config_from_directory(path.parent)
    ),
    "vision-model-config": Target(
        "config.json",
        _file(ASSETS / "deer_jax" / "assets" / "base" / "config.json"),
        lambda path: vision_config(path.parent),
    ),
    "run-config": Target(
        "config.json",
        _text(json.dumps({"max_length": 64, "optim": {"learning_rate": 1e-3}, "data": {"corpus": "fundus"}})),
        lambda path: read_config(RetstaConfig, path.parent),
    ),
    "report-pairs": Target(
        "pairs.jsonl", lambda _: [_rows(PAIR, PAIR | {"id": 2})], lambda path: read_pairs(path, Quarantine())
    ),
    "parquet": Target("pairs.parquet", _parquet, lambda path: read_pairs(path, Quarantine())),
    "parquet-images": Target("images.parquet", _parquet_images, _read_images),
    "arrow-images": Target("data-00000-of-00001.arrow", _arrow_images, lambda path: _read_images(path.parent)),
    "parquet-stored": Target("stored.parquet", _parquet_images, _read_stored_images),
    "arrow-stored": Target("data-00000-of-00001.arrow", _arrow_images, lambda path: _read_stored_images(path.parent)),
    "array-record": _tfds_file(ARRAY_RECORD),
    "tfrecord": Target(TFRECORD, _tfrecord, lambda path: _read_images(path.parent)),
    "tfds-features": _tfds_file("features.json"),
    "tfds-info": _tfds_file("dataset_info.json"),
    "arrow": Target("data-00000-of-00001.arrow", _arrow, lambda path: read_pairs(path.parent, Quarantine())),
    "reports": Target(
        "reports.txt", _text("OD: few drusen.\n右眼：玻璃膜疣。\n"), lambda path: read_reports(str(path))
    ),
    "report-rows": Target(
        "reports.jsonl",
        lambda _: [_rows({"id": 1, "report": "OD: few drusen."}, {"id": "b", "report": "clear"})],
        lambda path: read_reports(str(path)),
    ),
    "labelled-reports": Target(
        "labelled.jsonl", lambda _: [_rows({"id": 1, "report": "clear", "labels": LABELS})], read_labeled
    ),
    "sampled-labels": Target(
        "labels.jsonl",
        lambda _: [_rows({"id": 1, "labels": [[0, 1] * 7, [1, 0] * 7], "rewards": [0.5, 1]})],
        read_studies,
    ),
    "metrics": Target("metrics.jsonl", lambda _: [_rows({"step": 1, "loss": 0.5})], read_metrics),
    "terminology": Target(
        "terms.tsv", lambda _: [b"".join(SHIPPED.read_bytes().splitlines(keepends=True)[:9])], load_terminology
    ),
    "terminology-json": Target(
        "terms.json", _text(json.dumps([{"id": "drusen", "en": "drusen", "zh": "玻璃膜疣"}])), load_terminology
    ),
}  # fmt: skip


def try_file(target: Target, folder: Path, content: bytes) -> None:
    """Read a file with this content. Raises whatever the reader raises, except a UserError of one line."""
    path = folder / target.name
    path.write_bytes(content)
    now = next(SECONDS) * 1_000_000_000
    os.utime(path, ns=(now, now))
    try:
        target.read(path)
    except UserError as error:
        if "\n" in str(error):
            raise AssertionError(f"not one line: {error}") from error
