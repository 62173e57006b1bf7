"""Programs of torch.export.save that would run code: each is refused, and nothing in it runs.

Every payload makes a marker file and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastlrp
from fastlrp.cli import archive, archive_graph

MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


class Marks:
    """A pickle of it makes a file when it is loaded without restriction."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def pickled(marker: Path, values: object = None) -> bytes:
    stream = io.BytesIO()
    torch.save(((Marks(marker),), {}) if values is None else values, stream)
    return stream.getvalue()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x):
        return self.linear(x.relu() * self.scale)


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> dict[str, bytes]:
    """The records of an ordinary program, with a symbolic batch size."""
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(Small().eval(), (torch.rand(2, 4),), dynamic_shapes=shapes), path)
    with zipfile.ZipFile(path) as members:
        return {name.partition("/")[2]: members.read(name) for name in members.namelist()}


def save(records: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as members:
        for name, data in records.items():
            members.writestr(f"model/{name}", data)
    return path


def edited(records: dict[str, bytes], name: str, edit) -> dict[str, bytes]:
    data = json.loads(records[name])
    edit(data)
    return {**records, name: json.dumps(data).encode()}


def graph(data):
    return data["graph_module"]["graph"]


def call(code: str, marker: Path) -> str:
    return code.replace("TOUCH", f"__import__('pathlib').Path('{marker}').touch()")


def first_entry(data):
    return next(iter(data["config"].values()))


def weight_as_pickle(records, marker):
    broken = edited(records, WEIGHTS, lambda data: first_entry(data).update(use_pickle=True))
    return {**broken, "data/weights/weight_0": pickled(marker)}


def constant_as(name, data_of):
    def spoil(records, marker):
        broken = edited(records, CONSTANTS, lambda d: first_entry(d).update(use_pickle=True, path_name=name))
        return {**broken, f"data/constants/{name}": data_of(marker)}

    return spoil


def expression(records, marker):
    def edit(data):
        sizes = graph(data)["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = call("TOUCH or Integer(2)", marker)

    return edited(records, MODEL, edit)


def hidden_in_symbol(records, marker):
    text = json.dumps(json.loads(records[MODEL])).replace("positive=True", call("positive=TOUCH is None", marker))
    return {**records, MODEL: text.encode()}


def node_named(records, marker):
    code = call("x=TOUCH", marker)
    return {**records, MODEL: records[MODEL].replace(b'"relu"', json.dumps(f"relu;{code}").encode())}


def parameter_named(records, marker):
    name = call('linear.w"),TOUCH,("', marker)
    text = records[MODEL].replace(b'"linear.weight"', json.dumps(name).encode())
    return {**records, MODEL: text}


def calls(target):
    def spoil(records, marker):
        def edit(data):
            graph(data)["nodes"][0]["target"] = target

        return edited(records, MODEL, edit)

    return spoil


def put_together(kind, context):
    def spoil(records, marker):
        tree = [1, {"type": kind, "context": context, "children_spec": []}]

        def edit(data):
            for entry in data["graph_module"]["module_call_graph"]:
                if entry["signature"]:
                    entry["signature"]["in_spec"] = json.dumps(tree)

        return edited(records, MODEL, edit)

    return spoil


DEFAULT = {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []}
ENUM = json.dumps({"__enum__": True, "fqn": "antigravity:X", "name": "y"})

ROUTES = {
    "sample inputs": (lambda r, m: {**r, SAMPLES: pickled(m)}, "sample inputs .* hold more than tensors", True),
    "a pickled weight": (weight_as_pickle, "'linear.weight' is no plain tensor but a pickle", True),
    "a pickled constant": (constant_as("tensor_0", pickled), "'scale' is no plain tensor", True),
    "an opaque constant": (
        constant_as("opaque_obj_0", lambda m: pickle.dumps(Marks(m))), "'scale' is no plain tensor", True),
    "a custom object": (constant_as("custom_obj_0", pickled), "'scale' is no plain tensor", False),
    "weights of PyTorch 2.8": (
        lambda r, m: {**r, "data/weights/model.pt": pickled(m)}, "'data/weights/model.pt', which is no part", True),
    "constants of PyTorch 2.8": (
        lambda r, m: {**r, "data/constants/model.pt": pickled(m)}, "'data/constants/model.pt', which is no part", True),
    "a second model": (lambda r, m: {**r, "models/more.json": r[MODEL]}, "'models/more.json', which is no part", False),
    "a compiled library": (
        lambda r, m: {**r, "data/aotinductor/model/a.so": b"\x7fELF"}, "holds compiled code", False),
    "the text of a size": (expression, "the size of a tensor is the expression .__import__", True),
    "a part of a symbol": (hidden_in_symbol, "the size of a tensor is the expression .Symbol", True),
    "the name of a node": (node_named, "the name of a node .relu;x=__import__", False),
    "the name of a parameter": (parameter_named, "the name 'linear.w", False),
    "a function of Python": (calls("torch.os.system"), "calls 'torch.os.system', which is none of PyTorch", False),
    "an operator that calls": (calls("_operator.call"), "calls '_operator.call'", False),
    "an operator on files": (calls("torch.ops.aten.from_file.default"), r"takes text \(filename\)", False),
    "a module to import": (put_together("collections.defaultdict", DEFAULT), "put together as 'collections.def", False),
    "an enumeration": (put_together("builtins.list", ENUM), "put together as 'builtins.list'", False),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_a_program_that_would_run_code_is_refused(route, program, run, tmp_path):
    spoil, message, runs = ROUTES[route]
    marker = tmp_path / "marker"
    path = save(spoil(program, marker), tmp_path / "evil.pt2")
    if runs and torch.__version__.startswith("2.13"):  # Later ones may refuse it too.
        with contextlib.suppress(Exception):  # The payload has run by then.
            torch.export.load(path)
        assert marker.exists(), "PyTorch runs it"
        marker.unlink()
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    done = run("explain", path, tmp_path / "x.npy", "-o", tmp_path / "out")
    assert not marker.exists()
    assert done.code == 2
    assert "could run code from the file" in done.err
    assert "--trust" in done.err
    with pytest.raises(archive.Refused, match=message):
        archive.repacked(path)


SIZES = [
    "Symbol('s77', positive=True, integer=True)",
    "s77",
    "3*s0 - 2",
    "Max(1, s0//2 + u1)",
    "FloorDiv(s0 + 3, 2)",
    "s0**2",
    "(s0**(-1))*4.5",
    "Mul(Integer(4), Pow(Symbol('s0', integer=True), Integer(2)))",
    "Eq(s0, 3)",
    "~(s0 >= 2) & (u0 < oo)",
    "Piecewise((1, s0 > 2), (0, True))",
    "Float('1.5e-3', precision=53)",
    "ModularIndexing(s0, 2, 4)",
    "-int_oo",
]
CODE = [
    "__import__('os')",
    "s0.__class__",
    "(lambda: 1)()",
    "[1][0]",
    "'a'",
    "open('x')",
    "exec('1')",
    "Symbol('x; y')",
    "s0 if s1 else 2",
    "sympify('1')",
    "lambdify(s0, s0)",
    "S('1')",
    "Symbol(s0).free_symbols",
    "f'{s0}'",
    "(s := 1)",
    "9**9**9",
    "x!",
    "",
    "(" * 500,
    "1" * 5000,
    "Float(open)",
    "Integer(*s0)",
    "Symbol('__import__')",
    "yield",
    "s0\n+1;1",
    "Symbol(b'x')",
    "Add(...)",
    "1j",
]


@pytest.mark.parametrize("text", SIZES)
def test_an_expression_of_sizes_is_not_refused(text):
    archive_graph._check_expression(text)


@pytest.mark.parametrize("text", CODE)
def test_code_in_the_place_of_a_size(text):
    with pytest.raises(archive.Refused, match="the size of a tensor is the expression"):
        archive_graph._check_expression(text)


def test_an_ordinary_program_is_loaded_with_its_numbers(program, run, tmp_path):
    extra = {"extra/notes.txt": b"made by hand"}
    path = save({**program, **extra}, tmp_path / "model.pt2")
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    np.save(tmp_path / "x.npy", x.numpy())
    done = run("explain", path, tmp_path / "x.npy", "-c", "epsilon", "-t", "all", "-f", "npy", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    torch.manual_seed(0)
    expected = fastlrp.explain(Small().eval(), x, "all", "epsilon")
    for number in range(2):
        found = np.load(tmp_path / "out" / f"x.npy_{number}_relevance.npy")
        np.testing.assert_allclose(found, expected[number], rtol=1e-5)


def test_guards_are_code_and_are_left_out(program, tmp_path):
    marker = tmp_path / "marker"
    records = edited(program, MODEL, lambda data: data.update(guards_code=[call("TOUCH is None", marker)]))
    again = torch.export.load(archive.repacked(save(records, tmp_path / "model.pt2")))
    assert again.module()(torch.zeros(2, 4)).shape == (2, 3)
    assert not marker.exists()


def test_a_trusted_file_is_loaded_as_pytorch_does(program, run, tmp_path):
    marker = tmp_path / "marker"
    path = save({**program, SAMPLES: pickled(marker)}, tmp_path / "model.pt2")
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    done = run("explain", path, tmp_path / "x.npy", "-f", "npy", "-o", tmp_path / "out", "--trust")
    assert done.code == 0, done.err
    assert marker.exists(), "that is what --trust means"


def test_archives_that_readers_understand_in_different_ways_are_refused(program, tmp_path):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(save(program, path), "a") as members:
        members.writestr("version", "8.20")
        members.writestr("serialized_state_dict.pt", pickled(tmp_path / "marker"))
    with pytest.raises(archive.Refused, match=r"PyTorch up to 2\.7"):
        archive.repacked(path)
    with zipfile.ZipFile(save(program, path), "a") as members:
        members.writestr("elsewhere/a", b"")
    with pytest.raises(archive.Refused, match="outside the archive's folder 'model'"):
        archive.repacked(path)
    with zipfile.ZipFile(save(program, path), "a") as members:
        members.writestr("model/Data/Sample_Inputs/Model.pt", pickled(tmp_path / "marker"))
    with pytest.raises(archive.Refused, match="more than once"):
        archive.repacked(path)
    with zipfile.ZipFile(save(program, path), "a", zipfile.ZIP_DEFLATED) as members:
        members.writestr("model/extra/bomb", bytes(2**20))
    with pytest.raises(archive.Refused, match=r"is compressed, which torch\.export\.save never does"):
        archive.repacked(path)


def test_a_size_that_is_only_declared_is_refused(program, tmp_path):
    def edit(data):
        first_entry(data)["tensor_meta"]["sizes"] = [{"as_int": 10**6}, {"as_int": 10**6}]

    records = {**edited(program, WEIGHTS, edit), "data/weights/weight_0": b""}
    with pytest.raises(ValueError, match="but 0 bytes: it is damaged"):
        archive.repacked(save(records, tmp_path / "model.pt2"))


def test_a_damaged_archive_is_told(program, run, tmp_path):
    path = save(program, tmp_path / "model.pt2")
    whole = path.read_bytes()
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    for size in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        done = run("explain", path, tmp_path / "x.npy", "-o", tmp_path / "out")
        assert done.code == 2
        assert "is no program of torch.export.save" in done.err


@pytest.mark.slow
def test_nothing_in_a_folder_of_hugging_face_is_run(run, tmp_path):
    """Python files that its configuration names, and pickles of weights; only where transformers is installed."""
    pytest.importorskip("transformers")
    from fastlrp.cli import hub

    hub.torchvision_models()
    from transformers import ResNetConfig, ResNetForImageClassification

    marker, folder = tmp_path / "marker", tmp_path / "hf"
    small = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic", "num_labels": 3}
    ResNetForImageClassification(ResNetConfig(**small)).save_pretrained(folder)
    np.save(tmp_path / "x.npy", np.ones((1, 3, 32, 32), np.float32))
    words = ("explain", f"hf:{folder}", tmp_path / "x.npy", "-o", tmp_path / "out")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickled(marker, {"classifier.1.bias": Marks(marker)}))
    assert run(*words).code == 2
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": names}))
    (folder / "own.py").write_text(call("TOUCH\n", marker))
    assert run(*words).code == 2
    assert not marker.exists()
