"""A pickle machine that can only put data together.

Python's own unpickler calls whatever a file names, so a model file would be a program. Here a global is a name and
nothing else (:class:`fastlrp.io.pickle_values.Name`), a class becomes an inert stand-in, the few functions that NumPy's
arrays need are done by :func:`fastlrp.io.pickle_values.reduced`, and no attribute of any object is looked up by a name
that stands in the file. Operations that a model does not need are refused by name.

It does not stand on ``pickle.Unpickler.find_class``: that class calls ``__setstate__`` and whatever a stand-in is,
makes room for any place in its memo that a file names (16 GB for eleven bytes), and does not say where in the file it
stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastlrp.io.pickle_ops import Operation, PickleError, operations
from fastlrp.io.pickle_values import CLASSES, Array, DType, Instance, Name, reduced

_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUE = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_NOTHING = {"PROTO", "FRAME"}
_TUPLE = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load(data: bytes) -> object:
    """The value of a pickle.

    Raises:
        PickleError: for anything that a model of the Toolbox does not contain.
    """
    machine = _Machine()
    for operation in operations(data):
        try:
            machine.step(operation)
        except PickleError as error:
            raise PickleError(error.reason, operation.position) from None
    return machine.result


class _Machine:
    """The stack of the values so far; a mark opens a new one above it."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.result: object = None
        self._actions: dict[str, Callable[[Operation], None]] = {
            "MARK": self._mark,
            "POP": lambda operation: self._drop(),
            "POP_MARK": lambda operation: self._discard(),
            "STOP": self._stop,
            "GLOBAL": self._global,
            "STACK_GLOBAL": self._stack_global,
            "INST": self._inst,
            "OBJ": self._obj,
            "NEWOBJ": self._newobj,
            "REDUCE": self._reduce,
            "BUILD": self._build,
            "MEMOIZE": lambda operation: self._put(len(self.memo)),
            "TUPLE": lambda operation: self._push(tuple(self._above_mark())),
            "LIST": lambda operation: self._push(self._above_mark()),
            "EMPTY_LIST": lambda operation: self.stack.append([]),
            "APPEND": lambda operation: self._extend([self._pop()]),
            "APPENDS": lambda operation: self._extend(self._above_mark()),
            "EMPTY_DICT": lambda operation: self.stack.append({}),
            "DICT": self._dict,
            "SETITEM": lambda operation: self._set_items(self._take(2)),
            "SETITEMS": lambda operation: self._set_items(self._above_mark()),
        }

    def step(self, operation: Operation) -> None:
        """Do one operation."""
        name = operation.name
        if name in _VALUE:
            self.stack.append(operation.argument)
        elif name in _CONSTANT:
            self.stack.append(_CONSTANT[name])
        elif name in _TUPLE:
            self.stack.append(tuple(self._take(_TUPLE[name])))
        elif name in _PUT:
            self._put(operation.argument)
        elif name in _GET:
            self._get(operation.argument)
        elif name in self._actions:
            self._actions[name](operation)
        elif name not in _NOTHING:
            raise PickleError(f"the operation {name} is refused: no model of the Toolbox contains it")

    # The stack

    def _push(self, value: object) -> None:
        self.stack.append(value)

    def _pop(self) -> Any:
        if not self.stack:
            raise PickleError("the pickle takes a value that is not there")
        return self.stack.pop()

    def _top(self) -> Any:
        if not self.stack:
            raise PickleError("the pickle takes a value that is not there")
        return self.stack[-1]

    def _take(self, count: int) -> list[Any]:
        values = [self._pop() for _ in range(count)]
        return values[::-1]

    def _mark(self, operation: Operation) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _above_mark(self) -> list[Any]:
        if not self.below:
            raise PickleError("the pickle returns to a mark that is not there")
        values, self.stack = self.stack, self.below.pop()
        return values

    def _drop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._above_mark()

    def _discard(self) -> None:
        self._above_mark()

    def _stop(self, operation: Operation) -> None:
        self.result = self._pop()
        if self.stack or self.below:
            raise PickleError("the pickle ends with values left over")

    def _put(self, index: int) -> None:
        self.memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError(f"the pickle takes value {index}, which it has not stored")
        self.stack.append(self.memo[index])

    # Names and objects

    def _global(self, operation: Operation) -> None:
        module, _, name = operation.argument.partition(" ")
        self.stack.append(Name.of(module, name, operation.position))

    def _stack_global(self, operation: Operation) -> None:
        module, name = self._take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("the pickle names a global by something that is not text")
        self.stack.append(Name.of(module, name, operation.position))

    def _inst(self, operation: Operation) -> None:
        module, _, name = operation.argument.partition(" ")
        self._object(Name.of(module, name, operation.position), self._above_mark())

    def _obj(self, operation: Operation) -> None:
        values = self._above_mark()
        if not values:
            raise PickleError("the pickle makes an object of no class")
        self._object(values[0], values[1:])

    def _newobj(self, operation: Operation) -> None:
        made_of, arguments = self._take(2)
        self._object(made_of, list(arguments) if isinstance(arguments, tuple) else [arguments])

    def _object(self, made_of: object, arguments: list[Any]) -> None:
        if not isinstance(made_of, Name) or made_of.full not in CLASSES:
            found = made_of.full if isinstance(made_of, Name) else f"a {type(made_of).__name__}"
            raise PickleError(f"the pickle makes an object of {found}, which is refused")
        if arguments:
            raise PickleError(f"the pickle makes a {made_of.full} with arguments: the Toolbox does not")
        self.stack.append(Instance(made_of.full.rpartition(".")[2]))

    def _reduce(self, operation: Operation) -> None:
        function, arguments = self._take(2)
        self.stack.append(reduced(function, arguments))

    def _build(self, operation: Operation) -> None:
        state, target = self._pop(), self._top()
        if not isinstance(target, (Instance, Array, DType)):
            raise PickleError(f"the pickle sets the state of a {type(target).__name__}, which is refused")
        target.update(state)

    # Lists and dicts

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise PickleError(f"the pickle appends to a {type(target).__name__}")
        target.extend(values)

    def _dict(self, operation: Operation) -> None:
        values = self._above_mark()
        self.stack.append({})
        self._set_items(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict:
            raise PickleError(f"the pickle sets an item of a {type(target).__name__}")
        if len(values) % 2:
            raise PickleError("the pickle gives a dict a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str):
                raise PickleError(f"the pickle gives a dict a {type(key).__name__} as key, expected text")
            target[key] = value
