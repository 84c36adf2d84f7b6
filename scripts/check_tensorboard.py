#!/usr/bin/env python3
"""Reads a run's event files as TensorBoard does and compares them with metrics.jsonl and samples.jsonl.

    check_tensorboard.py RUN        every figure and sample once, at its step, and nothing else
    check_tensorboard.py --bytes    the records that crates/trainer/src/tensorboard/event.rs is tested against

Needs the package `tensorboard`; without it, says that nothing was checked.
"""

import json
import struct
import sys
from pathlib import Path

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def single(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def check(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    expected = {}
    for line in lines(run / "metrics.jsonl"):
        for key, value in line.items():
            if key not in ("kind", "format", "step", "seconds"):
                expected.setdefault(f"{line['kind']}/{key}", []).append((line["step"], single(value)))
    tags = events.Tags()
    assert sorted(tags["scalars"]) == sorted(expected), (tags, sorted(expected))
    last = {}
    for tag, values in expected.items():
        found = events.Scalars(tag)
        assert [(event.step, event.value) for event in found] == values, f"{tag}: {found}, not {values}"
        times = [event.wall_time for event in found]
        assert times == sorted(times), f"{tag}: {times}"
        last[tag] = len(values)
    samples = lines(run / "samples.jsonl")
    assert tags["tensors"] == (["sample/text"] if samples else []), tags
    texts = [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors("sample/text")] if samples else []
    assert texts == [
        (line["step"], "\n".join("    " + part for part in (line["prompt"] + line["text"]).split("\n"))) for line in samples
    ], texts
    print(f"{run}: {sum(last.values())} figures of {len(last)} tags and {len(texts)} samples are those of the run")


def record(event):
    data = event.SerializeToString(deterministic=True)
    length = struct.pack("<Q", len(data))
    return (length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))).hex()


def print_bytes():
    print("VERSION", record(event_pb2.Event(wall_time=1.5, file_version="brain.Event:2")))
    print("START", record(event_pb2.Event(wall_time=1.5, session_log=event_pb2.SessionLog(status=1))))
    scalars = event_pb2.Event(wall_time=2.5, step=300)
    scalars.summary.value.add(tag="train/loss", simple_value=1.25)
    scalars.summary.value.add(tag="train/lr", simple_value=0.001)
    print("SCALARS", record(scalars))
    text = event_pb2.Event(wall_time=3.0, step=7)
    value = text.summary.value.add(tag="sample/text")
    value.metadata.plugin_data.plugin_name = "text"
    value.metadata.data_class = 2
    value.tensor.dtype = 7
    value.tensor.tensor_shape.SetInParent()
    value.tensor.string_val.append("    Ä".encode())
    print("TEXT", record(text))


if __name__ == "__main__":
    if sys.argv[1:] == ["--bytes"]:
        print_bytes()
    elif len(sys.argv) == 2:
        check(Path(sys.argv[1]))
    else:
        sys.exit(__doc__)
