"""Pickled models that are hostile, truncated or simply wrong: an error that names what is refused, and nothing runs.

Files that would run code leave a marker when Python's own unpickler reads them, which is asserted first: a file that
does nothing would prove nothing.
"""

from __future__ import annotations

import builtins
import functools
import os
import pickle
import struct
import sys

import numpy as np
import pytest

from fastlrp.io import FormatError, read_model
from tests.io import toolbox


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def write_marker(path):
    return Call(exec, f"open({str(path)!r}, 'w').close()")


def shell(path):
    return Call(os.system, f": > '{path}'")


def import_by_name(path):
    return Call(eval, f"__import__('os').mkdir({str(path)!r})")


def through_partial(path):
    # A partial object that is called through the state of another.
    return Call(functools.partial(os.mkdir, str(path)))


def through_getattr(path):
    return Call(getattr, Call(builtins.__import__, "os"), "mkdir")


def object_array(path):
    return np.array([write_marker(path)], dtype=object)


def inside_a_layer(path):
    return [toolbox.linear(2, 3, W=write_marker(path))]


def inside_an_object_array_of_a_layer(path):
    return [toolbox.linear(1, 1, W=np.array([[shell(path)]], dtype=object))]


def inside_an_attribute_that_nobody_reads(path):
    return [toolbox.layer("Rect", Y=[{"deep": (1, [write_marker(path)])}])]


def with_a_dtype_of_objects(path):
    return [toolbox.linear(2, 3, W=np.zeros((2, 3), [("a", "f8"), ("b", object)])), write_marker(path)]


RUNNING = {
    shell: "posix.system|nt.system",
    write_marker: "builtins.exec",
    import_by_name: "builtins.eval",
    object_array: "dtype of an array is 'O8', which is refused",
    inside_a_layer: "builtins.exec",
    inside_an_object_array_of_a_layer: "dtype of an array is 'O8', which is refused",
    inside_an_attribute_that_nobody_reads: "builtins.exec",
    with_a_dtype_of_objects: "dtype of an array is 'V16', which is refused",
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("hostile", RUNNING, ids=lambda function: function.__name__)
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(hostile, protocol, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "net.nn"
    path.write_bytes(toolbox.dumps(hostile(marker), protocol))
    with toolbox.classes(one_file=False):
        pickle.loads(path.read_bytes())
    assert marker.exists(), "Python's own unpickler runs it"
    marker.rmdir() if marker.is_dir() else marker.unlink()
    with pytest.raises(FormatError) as caught:
        read_model(path)
    assert not marker.exists()
    name = "__builtin__" if protocol == 2 else "builtins"
    expected = RUNNING[hostile].replace("builtins", name)
    assert any(part in str(caught.value) for part in expected.split("|")), caught.value
    assert caught.value.byte is not None
    assert not any(module.split(".")[0] == "modules" for module in sys.modules)


@pytest.mark.parametrize(
    ("hostile", "name"),
    [(through_partial, "functools.partial"), (through_getattr, "getattr")],
    ids=["partial", "getattr"],
)
def test_chains_that_reach_for_a_function_are_refused_at_the_first_name(hostile, name, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "net.nn"
    path.write_bytes(toolbox.dumps(hostile(marker), 4))
    with pytest.raises(FormatError, match=f"the pickle names the global '[a-z_.]*{name}', which is refused"):
        read_model(path)
    assert not marker.exists()


# By hand: operations that no honest writer uses.

MARK = b"("
SEQUENTIAL = b"cmodules.sequential\nSequential\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


NAMES = {
    "a function of os": (b"cos\nsystem\n" + text("true") + b"\x85R.", "'os.system'"),
    "a name with dots": (
        b"\x80\x04" + text("modules.sequential") + text("Sequential.__init__.__globals__") + b"\x93.",
        r"'modules.sequential.Sequential.__init__.__globals__'",
    ),
    "another class of modules": (b"cmodules.module\nModule\n.", "'modules.module.Module'"),
    "modules.os": (b"cmodules.sequential\nos\n.", "'modules.sequential.os'"),
    "numpy's own way to run text": (b"cnumpy.testing._private.utils\nrunstring\n.", "utils.runstring'"),
    "numpy.load": (b"cnumpy\nload\n.", "'numpy.load'"),
    "a class by INST": (MARK + text("true") + b"ios\nsystem\n.", "'os.system'"),
    "a name cut out of a longer one": (b"cnumpy.core\nmultiarray._reconstruct2\n.", "_reconstruct2'"),
    "copyreg": (b"ccopyreg\n_reconstructor\n.", "'copyreg._reconstructor'"),
    "a very long name": (b"c" + b"a" * 500 + b"\nb\n.", "'a{80}…'"),
}


@pytest.mark.parametrize("case", NAMES)
def test_globals_that_are_refused_by_name(case, tmp_path):
    data, name = NAMES[case]
    path = tmp_path / "net.nn"
    path.write_bytes(data)
    with pytest.raises(
        FormatError, match=rf"the pickle names the global .*{name.strip(chr(39))}.*, which is refused: a model"
    ):
        read_model(path)


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
F8 = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
HUGE = b"\x8a\x08" + b"\xff" * 7 + b"\x00"  # 2**56 - 1


def array(shape: bytes, content: bytes = b"U\x08" + bytes(8), dtype: bytes = F8) -> bytes:
    return ARRAY + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + content + b"tb"


def one_linear(weight: bytes, bias: bytes, rest: bytes = b"") -> bytes:
    layer = MARK + b"cmodules.linear\nLinear\no}(U\x01W" + weight + b"U\x01B" + bias + rest + b"ub"
    return b"\x80\x02(" + SEQUENTIAL + b"o}(U\x07modules](" + layer + b"eub."


WRONG = {
    "calls a class": (SEQUENTIAL + b")R.", "the pickle calls modules.sequential.Sequential, which is refused"),
    "calls a number": (b"K\x01)R.", "the pickle calls a int, which is refused"),
    "calls numpy.ndarray": (b"cnumpy\nndarray\n(K\x01tR.", "the pickle calls numpy.ndarray, which is refused"),
    "reconstructs another class": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cmodules.linear\nLinear\n(K\x00tU\x01btR.",
        "calls numpy.core.multiarray._reconstruct with arguments that NumPy does not write",
    ),
    "encodes otherwise": (b"c_codecs\nencode\n(U\x01aU\x05rot13tR.", "calls _codecs.encode with arguments"),
    "makes a dtype of an object": (
        b"cnumpy\ndtype\n(" + SEQUENTIAL + b"tR.",
        "dtype of an array is a Name, which is refused",
    ),
    "sets the state of a class": (SEQUENTIAL + b"}b.", "sets the state of a Name, which is refused"),
    "sets the state of a list": (b"]}b.", "sets the state of a list, which is refused"),
    "slots as state": (MARK + SEQUENTIAL + b"oN}\x86b.", "the state of a Sequential is a tuple"),
    "an object with arguments": (
        MARK + SEQUENTIAL + b"K\x01o.",
        "makes a modules.sequential.Sequential with arguments",
    ),
    "an object of an array function": (
        MARK + b"cnumpy.core.multiarray\n_reconstruct\no.",
        "makes an object of numpy.core.multiarray._reconstruct, which is refused",
    ),
    "an extension code": (b"\x80\x02\x82\xf0.", "the operation EXT1 is refused"),
    "a persistent id": (b"Pos.system\n.", "the operation PERSID is refused"),
    "a persistent id from the stack": (b"U\x01aQ.", "the operation BINPERSID is refused"),
    "keywords": (b"\x80\x04" + SEQUENTIAL + b")}\x92.", "the operation NEWOBJ_EX is refused"),
    "a buffer from outside": (b"\x80\x05\x97.", "the operation NEXT_BUFFER is refused"),
    "structured dtype": (
        b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01|N(U\x01at}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
        "structured dtypes are refused",
    ),
    "no model": (b"\x80\x02K\x01.", "the pickle holds a int, expected a modules.sequential.Sequential"),
    "a layer alone": (MARK + b"cmodules.rect\nRect\no}b.", "the pickle holds a Rect, expected a modules.sequential"),
    "no layers": (MARK + SEQUENTIAL + b"o}b.", "attribute 'modules' is not a list of 1 to 10000 layers"),
    "a layer that is a number": (
        MARK + SEQUENTIAL + b"o}(U\x07modules](K\x01eub.",
        r"layer 0 \(int\): expected one of Linear, Convolution",
    ),
    "takes what is not there": (b"\x80\x02\x85.", "takes a value that is not there"),
    "returns to no mark": (b"K\x01t.", "returns to a mark that is not there"),
    "takes what was not stored": (b"h\x07.", "takes value 7, which it has not stored"),
    "a key that is a list": (b"}]K\x01s.", "gives a dict a list as key"),
    "leaves values": (b"K\x01K\x02.", "ends with values left over"),
    "bytes behind the end": (b"K\x01.cos\nsystem\n", "11 bytes follow the end of the pickle"),
    "no operation": (b"\x80\x02\xff.", "byte 0xff is no pickle operation"),
    "a text model": (b"Linear 1 2\n1 2\n0 0\n", r"this is the text format, not a pickle: name the file \*.txt"),
    # Sizes that are not there.
    "eight exabytes of bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.", "BINBYTES8: expected 46116"),
    "a byte array without end": (b"\x80\x05\x96" + struct.pack("<Q", 2**63 - 1) + b".", "BYTEARRAY8: expected 92233"),
    "text without end": (b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1) + b".", "BINUNICODE8: expected 92233"),
    "an integer without end": (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".", "LONG4: "),
    "a place of two billion": (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "holds a int, expected a modules.sequential"),
    "a negative length": (b"\x80\x02T" + struct.pack("<i", -1) + b".", "BINSTRING: "),
    "a decimal without end": (b"L" + b"9" * 5000 + b"L\n.", "LONG: "),
    "a huge shape": (
        one_linear(array(HUGE + HUGE), array(b"K\x01")),
        "shape of an array is not a short tuple of sizes",
    ),
    "a large shape": (
        one_linear(array(b"J\x00\x00\x00\x40J\x00\x00\x00\x40"), array(b"K\x01")),
        r"layer 0 \(Linear\): an array of shape \(1073741824, 1073741824\) and dtype float64 has 9223372036854775808 "
        "bytes, found 8",
    ),
    "an empty array": (one_linear(array(b"K\x00K\x05", b"U\x00"), array(b"K\x01")), r"W has the shape \(0, 5\)"),
    "text as numbers": (
        one_linear(array(b"K\x01K\x01", text("Ω" * 8)[:5] + "Ω".encode() * 4), array(b"K\x01")),
        "is text",
    ),
    "an array without state": (one_linear(ARRAY, array(b"K\x01")), "the dtype of an array is a NoneType"),
    "weights that are a number": (
        one_linear(b"K\x01", array(b"K\x01")),
        r"layer 0 \(Linear\): W is a int, expected an array",
    ),
    "weights with one axis": (one_linear(array(b"K\x01"), array(b"K\x01")), r"W has the shape \(1,\), expected 2 axes"),
    "a bias of another size": (
        one_linear(array(b"K\x01K\x01"), array(b"K\x02", b"U\x10" + bytes(16))),
        "B has 2 entries, expected 1",
    ),
    "sizes beside the weights": (
        one_linear(array(b"K\x01K\x01"), array(b"K\x01"), b"U\x01mK\x07"),
        r"the attribute 'm' is 7, but W has the shape \(1, 1\)",
    ),
    "not a number": (
        one_linear(array(b"K\x01K\x01", b"U\x08" + struct.pack("<d", float("nan"))), array(b"K\x01")),
        "W contains NaN or infinite entries",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_pickles_are_refused_with_their_reason(case, tmp_path):
    data, message = WRONG[case]
    path = tmp_path / "net.nn"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read_model(path)


ATTRIBUTES = {
    "no stride": (toolbox.layer("SumPool", pool=(2, 2)), r"layer 1 \(SumPool\): the attribute 'stride' is missing"),
    "stride of zero": (
        toolbox.layer("SumPool", pool=(2, 2), stride=(2, 0)),
        "stride has the entry 0, expected two integers",
    ),
    "pool of one": (toolbox.layer("MaxPool", pool=(2,), stride=(2, 2)), "pool is a tuple, expected two integers"),
    "pool of floats": (toolbox.layer("MaxPool", pool=(2.0, 2), stride=(2, 2)), "pool has the entry a float"),
    "endless stride": (toolbox.layer("MaxPool", pool=(1, 1), stride=(10**5000, 1)), "stride has the entry a int"),
    "integer weights": (toolbox.linear(2, 3, W=np.ones((2, 3), int)), "W has the dtype int64, expected float32 or"),
    "no bias": (toolbox.linear(2, 3, B=None), "B is a NoneType, expected an array"),
    "features that do not fit": (toolbox.linear(3, 1), r"layer 2 \(Linear\): Linear 3 1 takes 3 features"),
    "a network in a network": (
        toolbox.layer("Sequential", modules=[]),
        r"layer 1 \(Sequential\): expected one of Linear",
    ),
}


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_attributes_are_checked(case, tmp_path):
    wrong, message = ATTRIBUTES[case]
    before = [toolbox.layer("Rect")] if wrong.kind != "Linear" else [toolbox.layer("Rect"), toolbox.linear(5, 2)]
    path = tmp_path / "net.nn"
    path.write_bytes(toolbox.dumps([*before, wrong]))
    with pytest.raises(FormatError, match=message):
        read_model(path)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_cut_anywhere_is_refused(protocol, tmp_path):
    data = toolbox.dumps([toolbox.linear(), toolbox.layer("Rect")], protocol)
    path = tmp_path / "net.nn"
    path.write_bytes(data)
    assert len(read_model(path)) == 2
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(FormatError):
            read_model(path)


def test_weights_that_a_file_repeats_are_not_copied_without_end(tmp_path):
    """A million layers that are one and the same would hold a million copies of its weights."""
    layer = (
        MARK + b"cmodules.linear\nLinear\no}(U\x01W" + array(b"K\x01K\x01") + b"U\x01B" + array(b"K\x01") + b"ubq\x63"
    )
    path = tmp_path / "net.nn"

    def repeated(times: int) -> None:
        path.write_bytes(b"\x80\x02(" + SEQUENTIAL + b"o}(U\x07modules](" + layer + b"h\x63" * times + b"eub.")

    repeated(3)
    assert len(read_model(path)) == 4
    repeated(5000)
    with pytest.raises(FormatError, match="repeat weights: they would hold more bytes than the whole file"):
        read_model(path)
    repeated(10_000)
    with pytest.raises(FormatError, match="not a list of 1 to 10000 layers"):
        read_model(path)


def test_attributes_named_like_python_own_are_only_names(tmp_path):
    """``__class__``, ``__setstate__`` and ``__reduce__`` in a state change nothing: no attribute is ever set."""
    state = b"".join(
        b"U" + bytes([len(name)]) + name + SEQUENTIAL for name in (b"__class__", b"__setstate__", b"__dict__")
    )
    rect = MARK + b"cmodules.rect\nRect\no}(" + state + b"ub"
    path = tmp_path / "net.nn"
    path.write_bytes(b"\x80\x02(" + SEQUENTIAL + b"o}(U\x07modules](" + rect + b"eub.")
    assert [type(module).__name__ for module in read_model(path)] == ["ReLU"]


def test_a_list_that_holds_itself_is_harmless(tmp_path):
    path = tmp_path / "net.nn"
    path.write_bytes(b"\x80\x02(" + SEQUENTIAL + b"o}(U\x07modules]q\x01h\x01aub.")
    with pytest.raises(FormatError, match=r"layer 0 \(list\): expected one of"):
        read_model(path)
