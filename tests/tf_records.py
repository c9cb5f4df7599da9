"""Data sets of TFDS as TFRecord, which TFDS itself writes with TensorFlow only."""

import json
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader
from tensorboardX.record_writer import RecordWriter


def as_tfrecord(folder: Path) -> Path:
    """The data set with the same records in TFRecord files in place of array_record, by the writer of tensorboardX."""
    for file in folder.glob("*.array_record-*"):
        reader = ArrayRecordReader(str(file))
        writer = RecordWriter(str(folder / file.name.replace(".array_record-", ".tfrecord-")))
        for record in reader.read(0, reader.num_records()):
            writer.write(record)
        writer.close()
        reader.close()
        file.unlink()
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text("utf-8")) | {"fileFormat": "tfrecord"}), "utf-8")
    return folder
