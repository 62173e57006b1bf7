"""The JSON of a saved program: only what describes a graph of operators, and nothing that Python would evaluate."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import torch

_IDENTIFIER = re.compile(r"[^\W\d]\w*")
# A dotted path, which PyTorch pastes into source code between double quotes.
_PATH = re.compile(r"[\w.:/@+<>\[\] -]*")
_STACK = re.compile(r"[^\"\\\x00-\x1f]*")
_VERSION = re.compile(r"[\w.+-]{0,80}")
_NODE_NAMES = {"name", "as_name"}
_REFUSED_KEYS = {"as_custom_obj": "a custom object", "custom_obj": "a custom object", "opaque": "an opaque object"}

_OPERATOR = re.compile(r"torch\.ops\.(aten|torchvision)\.([a-z_]\w*)\.(\w+)")
_OTHER_OPERATORS = re.compile(
    r"torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|torch\._?sym_[a-z0-9_]+|math\.[a-z][a-z0-9]*"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|lshift|rshift)"
)
# Arguments of ATen's operators that are text and choose between ways to compute.
_TEXT_ARGUMENTS = {
    "approximate", "assert_msg", "driver", "equation", "indexing", "mode", "msg", "ord", "padding", "padding_mode",
    "reduce", "rounding_mode", "side",
}  # fmt: skip

_CONTAINERS = {
    None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "collections.namedtuple",
    "torch.fx.immutable_collections.immutable_list", "torch.fx.immutable_collections.immutable_dict",
}  # fmt: skip

_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "floor", "ceiling", "Mod", "Eq",
    "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "StrictGreaterThan", "LessThan",
    "GreaterThan", "And", "Or", "Not", "Piecewise", "ExprCondPair", "FloorDiv", "ModularIndexing", "Where", "PythonMod",
    "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv",
    "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal",
    "ToFloat", "Identity",
}  # fmt: skip
_SYMBOL = re.compile(r"[a-z]+_?\d+")
_CONSTANTS = {"true", "false", "oo", "int_oo"}
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.keyword, ast.Name, ast.Constant,
    ast.Load, ast.Tuple, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


class Refused(Exception):  # noqa: N818 - "Error" would say nothing more.
    """Loading this file would, or could, run code that stands in it."""


def checked(value: Any) -> Any:
    """The JSON without guards and without metadata of nodes that nothing here reads.

    Raises:
        Refused: for an operator, an expression or a name that is more than that.
    """
    try:
        return _value(value, "")
    except RecursionError:
        raise ValueError("its graph is nested too deeply") from None


def _value(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _field(name, entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_value(entry, key) for entry in value]
    if isinstance(value, str):
        _check_text(key, value)
    return value


def _field(name: str, value: Any) -> Any:
    if name in _REFUSED_KEYS:
        raise Refused(f"its graph holds {_REFUSED_KEYS[name]}")
    if not _PATH.fullmatch(name):
        raise Refused(f"its graph has the name {_shown(name)}")
    if name == "guards_code":  # Python, which PyTorch runs when a program is called.
        return []
    if name == "metadata" and isinstance(value, dict):
        return {kind: _stack(text) for kind, text in value.items() if kind == "nn_module_stack"}
    return _value(value, name)


def _stack(text: Any) -> Any:
    if not isinstance(text, str) or not _STACK.fullmatch(text):
        raise Refused(f"the module path of a node is {_shown(text)}")
    return text


def _check_text(key: str, text: str) -> None:
    if key in ("target", "as_operator"):
        _check_operator(text)
    elif key == "expr_str":
        _check_expression(text)
    elif key in ("in_spec", "out_spec"):
        _check_structure(text)
    elif key in ("as_string", "as_strings"):
        return  # PyTorch writes these with repr().
    elif key == "torch_version":
        _match(_VERSION, text, "version")
    elif key in _NODE_NAMES:
        if text:
            _match(_IDENTIFIER, text, "name of a node")
    else:
        _match(_PATH, text, "name")


def _match(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise Refused(f"its graph has the {what} {_shown(text)}, which is no plain name")


def _check_operator(text: str) -> None:
    found = _OPERATOR.fullmatch(text)
    if found is None:
        if not _OTHER_OPERATORS.fullmatch(text):
            raise Refused(f"its graph calls {_shown(text)}, which is none of PyTorch's operators on tensors")
        return
    try:
        schema = getattr(getattr(getattr(torch.ops, found[1]), found[2]), found[3])._schema
    except (AttributeError, RuntimeError):
        raise ValueError(f"PyTorch {torch.__version__} has no operator {text}") from None
    for argument in schema.arguments:
        if "str" in str(argument.type) and argument.name not in _TEXT_ARGUMENTS:
            raise Refused(f"its graph calls {text}, which takes text ({argument.name})")


def _check_expression(text: str) -> None:
    """Symbolic sizes are read by SymPy, which evaluates them as Python."""
    try:
        if len(text) > 100_000:
            raise ValueError
        tree = ast.parse(text, mode="eval")
        fine = all(_is_harmless(node) for node in ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        fine = False
    if not fine:
        raise Refused(f"the size of a tensor is the expression {_shown(text)}")


def _is_harmless(node: ast.AST) -> bool:
    if not isinstance(node, _NODES):
        return False
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):  # A tower of powers takes forever.
        power = node.right.operand if isinstance(node.right, ast.UnaryOp) else node.right
        return isinstance(power, ast.Constant) and isinstance(power.value, int) and power.value <= 64
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS | _CONSTANTS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.fullmatch(r"[a-z]+_?\d+|-?\d+(\.\d*)?(e[+-]?\d+)?", node.value) is not None
    return not isinstance(node, ast.Constant) or isinstance(node.value, (int, float))


def _check_structure(text: str) -> None:
    """How inputs and outputs are put together; other containers than Python's own bring code of theirs."""
    spec = json.loads(text) if text else [1, {"type": None}]
    waiting = [spec[1]] if isinstance(spec, list) and len(spec) == 2 else [None]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            raise ValueError("the structure of its inputs or outputs is no tree")
        if part.get("type") not in _CONTAINERS or "__enum__" in str(part.get("context")):
            raise Refused(f"its inputs or outputs are put together as {_shown(str(part.get('type')))}")
        waiting += part.get("children_spec") or []


def _shown(text: Any) -> str:
    text = str(text)
    return repr(text if len(text) <= 60 else text[:60] + "…")
