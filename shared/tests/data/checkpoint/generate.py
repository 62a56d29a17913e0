"""Writes the checkpoints of this folder, and what must be read from them.

    pip install torch==2.15.0 numpy safetensors
    python generate.py

Each `<case>.*.pt` has a `<case>.safetensors` with its tensors under dotted names and a
`<case>.json` with its other values: tensors, bytes and foreign objects are null, integers beyond
64 bits and numbers that JSON lacks are strings, tuples and sets are lists.
"""

import argparse
import collections
import enum
import io
import json
import math
import pickle
import struct
import tarfile
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent


class Mode(enum.Enum):
    FAST = 1


class Config(dict):
    """Stands for the configuration classes of other libraries."""


def tensors_of(value, name=""):
    join = lambda part: f"{name}.{part}" if name else str(part)
    if isinstance(value, torch.Tensor):
        known = not (value.is_sparse or value.is_complex() or value.is_neg())
        return {name or "tensor": value.detach()} if known else {}
    if type(value) in (dict, collections.OrderedDict, collections.defaultdict):
        parts = value.items()
    elif type(value) in (list, tuple):
        parts = enumerate(value)
    else:
        parts = []
    return {k: v for key, part in parts for k, v in tensors_of(part, join(key)).items()}


def json_of(value):
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, enum.Enum):
        return None
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value) if abs(value) < 2**127 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else {"nan": "NaN"}.get(str(value), str(value))
    if type(value) in (list, tuple, set, frozenset, torch.Size):
        return [json_of(item) for item in value]
    if type(value) in (dict, collections.OrderedDict, collections.defaultdict):
        label = lambda key: key if isinstance(key, str) else json.dumps(json_of(key), separators=(",", ":"))
        return {label(key): json_of(item) for key, item in value.items()}
    return None


def expect(case, value):
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors_of(value).items()}
    save_file(tensors, FOLDER / f"{case}.safetensors")
    (FOLDER / f"{case}.json").write_text(json.dumps(json_of(value)) + "\n")


def save(case, value, layouts=("zip", "stream"), protocols=(2,)):
    expect(case, value)
    for layout in layouts:
        for protocol in protocols:
            torch.save(
                value,
                FOLDER / f"{case}.{layout}{protocol}.pt",
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=layout == "zip",
            )


def dtypes():
    grid = torch.arange(-3, 9, dtype=torch.float64).reshape(3, 4) / 3
    values = {str(dtype).removeprefix("torch."): grid.to(dtype) for dtype in [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8]}
    values["uint8"] = torch.arange(250, 256, dtype=torch.uint8)
    values["bool"] = torch.tensor([[True, False], [False, True]])
    values["extremes"] = [
        torch.tensor([-(2**63), 2**63 - 1]),
        torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32),
        torch.tensor([-(2**15), 2**15 - 1], dtype=torch.int16),
        torch.tensor([-128, 127], dtype=torch.int8),
        torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0]),
    ]
    return values


def new_dtypes():
    return {
        "uint16": torch.tensor([0, 65535], dtype=torch.uint16),
        "uint32": torch.tensor([0, 2**32 - 1], dtype=torch.uint32),
        "uint64": torch.tensor([0, 2**63 - 1], dtype=torch.uint64),
        "float8_e4m3fn": torch.tensor([0.5, -448.0]).to(torch.float8_e4m3fn),
    }


def layouts():
    base = torch.arange(120, dtype=torch.float32).reshape(2, 3, 4, 5)
    flat = torch.arange(40, dtype=torch.float32)
    column = torch.arange(6, dtype=torch.int16).reshape(3, 2)
    return collections.OrderedDict(
        base=base,
        transposed=base.transpose(1, 3),
        permuted=base.permute(3, 0, 2, 1),
        channels_last=base.contiguous(memory_format=torch.channels_last),
        narrowed=base[:, 1:, ::2, 1:4],
        stepped=flat[3::7],
        first=flat[:10].view(2, 5),
        second=flat[10:].view(5, 6),
        column=column[:, 1],
        transposed_column=column.t(),
        expanded=torch.tensor([1.5, 2.5]).expand(3, 2),
        expanded_scalar=torch.tensor(7).expand(2, 2),
        overlapping=flat.as_strided((4, 3), (2, 1), 5),
        tied=flat,
        also_tied=flat,
        scalar=torch.tensor(3.25),
        scalar_view=flat[17],
        empty=torch.empty(0),
        empty_rows=torch.empty(0, 4),
        empty_view=base[:, :0],
        single=base[1:, 2:, 3:, 4:],
        many_dimensions=torch.zeros([1] * 12),
    )


def values():
    shared = {"same": torch.ones(2), "text": "shared"}
    default = collections.defaultdict(list)
    default["entry"].append(1)
    return {
        "none": None,
        "booleans": [True, False],
        "integers": [0, 1, 255, 256, 65535, 65536, -1, -129, 2**31 - 1, -(2**31), 2**31, 2**63 - 1,
                     -(2**63), 2**64 - 1, 2**64, -(2**100), 2**200],
        "floats": [0.1, -1e300, 5e-324, float("inf"), float("-inf"), float("nan")],
        "texts": ["", "ascii", "\u00fcber \U0001f600", "x" * 300, 'quoted " \\ \n'],
        "bytes": [b"", b"\x00\xff", b"b" * 300],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, [2, (3,)], 4, 5)],
        "sets": [set(), {1}, frozenset({"a"})],
        "empty": [[], {}, collections.OrderedDict()],
        "size": torch.Size([2, 3]),
        "default": default,
        1: "integer key",
        (1, 2): "tuple key",
        "twice": [shared, shared],
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}},
                      "param_groups": [{"lr": 0.001, "betas": (0.9, 0.999), "params": [0]}]},
        "long list": list(range(1500)),
        "subnet": (3, [24, 32, 16, 24], [5, 3, 3, 3], 40),
    }


def parameters():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    adorned = torch.nn.Parameter(torch.rand(2))
    adorned.group = "head"
    attributed = torch.rand(3)
    attributed.note = "kept by torch"
    return {
        "state_dict": model.state_dict(keep_vars=True),
        "detached": model.state_dict(),
        "frozen": torch.nn.Parameter(torch.rand(2, 2), requires_grad=False),
        "adorned": adorned,
        "attributed": attributed,
        "buffer": torch.nn.Buffer(torch.rand(2)),
    }


def foreign():
    return {
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "config": Config(width=3),
        "modes": [Mode.FAST, Mode.FAST],
        "module": torch.nn.Linear(2, 2),
        "complex": torch.tensor([1j]),
        "sparse": torch.eye(2).to_sparse(),
        # Stored with the wrong sign, and a mark that says so.
        "negated": torch.tensor([1 + 2j]).conj().imag,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "range": range(3),
        "weight": torch.rand(2),
    }


def python2():
    """A stream as Python 2 wrote it: byte strings, and an OrderedDict made from a list."""
    state = collections.OrderedDict(weight=torch.rand(2, 2), bias=torch.rand(2))

    class Python2Pickler(pickle._Pickler):
        dispatch = dict(pickle._Pickler.dispatch)

        def save_str(self, text):
            data = text.encode()
            self.write(b"U" + struct.pack("<B", len(data)) + data)
            self.memoize(text)

        def save_state(self, state):
            pairs = [list(pair) for pair in state.items()]
            self.save_reduce(collections.OrderedDict, (pairs,), obj=state)

        dispatch[str] = save_str
        dispatch[collections.OrderedDict] = save_state

    class Module:
        __name__ = "pickle"
        Pickler = Python2Pickler
        dump = staticmethod(lambda value, file, protocol: Python2Pickler(file, protocol).dump(value))

    expect("python2", state)
    torch.save(state, FOLDER / "python2.stream2.pt", pickle_module=Module, pickle_protocol=2,
               _use_new_zipfile_serialization=False)


def tar():
    """A tar archive as torch 0.1.9 and older wrote it."""
    flat = torch.arange(12, dtype=torch.float32)
    long = torch.tensor([5, 6])
    views = {11: flat.view(3, 4), 12: flat.view(3, 4).t(), 13: long, 14: flat[4:8], 15: flat[6:8]}
    owner = {11: 1, 12: 1, 13: 2, 14: 3, 15: 3}
    offsets = {15: 2}
    value = {"model": {"a": views[11], "b": views[12], "c": views[13]}, "part": [views[14], views[15]],
             "epoch": 7}
    expect("tar", value)
    keys = {id(view): key for key, view in views.items()}

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return keys.get(id(item)) if isinstance(item, torch.Tensor) else None

    storages = io.BytesIO()
    dump = lambda value, file: pickle.dump(value, file, protocol=2)
    dump(2, storages)
    for key, storage, kind in [(1, flat, torch.FloatStorage), (2, long, torch.LongStorage)]:
        dump((key, "cpu", kind), storages)
        storages.write(struct.pack("<q", storage.numel()) + storage.numpy().tobytes())
    dump([(3, 1, 4, 4)], storages)

    tensors = io.BytesIO()
    dump(len(views), tensors)
    for key, view in views.items():
        dump((key, owner[key], torch.FloatTensor if view.dtype == torch.float32 else torch.LongTensor), tensors)
        tensors.write(struct.pack("<ii", view.dim(), 0))
        tensors.write(struct.pack(f"<{2 * view.dim()}q", *view.shape, *view.stride()))
        tensors.write(struct.pack("<q", offsets.get(key, 0)))

    values = io.BytesIO()
    Pickler(values, 2).dump(value)
    path = FOLDER / "tar.tar2.pt"
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in [("storages", storages), ("tensors", tensors), ("pickle", values)]:
            info = tarfile.TarInfo(name)
            info.size = len(content.getvalue())
            archive.addfile(info, io.BytesIO(content.getvalue()))
    # PyTorch still reads this layout; it must agree.
    for name, tensor in tensors_of(torch.load(path, weights_only=False)).items():
        assert torch.equal(tensor, tensors_of(value)[name]), name


if __name__ == "__main__":
    torch.manual_seed(0)
    save("dtypes", dtypes(), protocols=(2, 3, 4, 5))
    save("new_dtypes", new_dtypes(), layouts=("zip",))
    save("layouts", layouts(), protocols=(2, 4))
    save("values", values(), protocols=(2, 3, 4, 5))
    save("parameters", parameters(), protocols=(2, 5))
    save("foreign", foreign(), layouts=("zip",), protocols=(2, 4))
    # In this layout a module brings its source code along; this stands for it.
    torch.serialization.get_source_lines_and_file = lambda _: (["class Flatten: ..."], 1, "model.py")
    save("module", {"module": torch.nn.Flatten(), "weight": torch.rand(2)}, layouts=("stream",))
    save("lone", torch.arange(3.0))
    python2()
    tar()
