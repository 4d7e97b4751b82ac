"""The stack machine of a pickle, which calls nothing: tensors, plain containers, and inert bags of attributes.

A pickle is a program whose instructions import and call any function that it names. The machine here has the same
instructions, but none of them imports or calls: a name stays a name (`Global`), a call stays a note of what would have been
called with which arguments (`Bag`). Only tensors, parameters, dictionaries, sets and sizes are rebuilt, by the functions
below.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .mace_tensors import STORAGES, Storage, read_values, view

MAX_INSTRUCTIONS = 2_000_000


@dataclass(frozen=True)
class Global:
    """The name of a class or function, "module.name"; it is never looked up."""

    name: str


@dataclass(eq=False, repr=False)
class Bag:
    """An object of the file: the name of its class or of the function that would have made it, and what it holds.

    Attributes:
        name: "module.class".
        args: what the class or function would have been called with.
        state: attributes by name.
        items: what was appended to it, or set as (key, value).
    """

    name: str
    args: tuple = ()
    state: dict = field(default_factory=dict)
    items: list = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The name of the class without its module."""
        return self.name.rpartition(".")[2]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; of a torch module also a parameter, buffer or submodule. "a.b" is the attribute b of a."""
        here, _, rest = name.partition(".")
        nested = (self.state.get(key) for key in ("_parameters", "_buffers", "_modules"))
        for table in (self.state, *nested):
            if isinstance(table, dict) and here in table:
                value = table[here]
                if rest:
                    return value.get(rest, default) if isinstance(value, Bag) else default
                return value
        return default

    def children(self) -> list[Bag]:
        """The submodules of a torch module in their order."""
        modules = self.state.get("_modules")
        return [child for child in modules.values() if isinstance(child, Bag)] if isinstance(modules, dict) else []


class Machine:
    """Runs one pickle.

    Args:
        read_storage: gives the bytes of a tensor storage by its key.
    """

    def __init__(self, read_storage: Callable[[str], bytes]):
        self.read_storage, self.storages = read_storage, {}
        self.stack, self.below, self.memo = [], [], {}

    def run(self, program: bytes) -> Any:
        """The object that the program leaves on the stack; any exception means that the program is not a sound pickle."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if count > MAX_INSTRUCTIONS:
                raise ValueError(f"more than {MAX_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _PUSH:
                self.stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name not in ("PROTO", "FRAME"):
                method = getattr(self, "_" + opcode.name.lower(), None)
                if method is None:
                    raise ValueError(f"the instruction {opcode.name} is not allowed")
                method(argument)
        raise ValueError("the pickle has no end")

    def _mark(self, _):
        self.below.append(self.stack)
        self.stack = []

    def _pop_mark(self, _=None) -> list:
        """Everything above the last mark; after it the stack is what was below the mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def _pop(self, _):
        self.stack.pop()

    def _dup(self, _):
        self.stack.append(self.stack[-1])

    def _put(self, index):
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index):
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    def _list(self, _):
        items = self._pop_mark()  # before self.stack is looked at
        self.stack.append(items)

    _frozenset = _list

    def _tuple(self, _):
        items = self._pop_mark()
        self.stack.append(tuple(items))

    def _last(self, count: int) -> tuple:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def _tuple1(self, _):
        self.stack.append(self._last(1))

    def _tuple2(self, _):
        self.stack.append(self._last(2))

    def _tuple3(self, _):
        self.stack.append(self._last(3))

    def _dict(self, _):
        items = self._pop_mark()
        self.stack.append({})
        self._set(items)

    def _setitem(self, _):
        self._set(list(self._last(2)))

    def _setitems(self, _):
        self._set(self._pop_mark())

    def _set(self, items: list) -> None:
        target, pairs = self.stack[-1], list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, Bag):
            target.items.extend(pairs)
        elif type(target) is dict:
            target.update((_key(key), value) for key, value in pairs)
        else:
            raise ValueError(f"items are set on a {type(target).__name__}")

    def _append(self, _):
        self._extend(list(self._last(1)))

    def _appends(self, _):
        self._extend(self._pop_mark())

    _additems = _appends

    def _extend(self, values: list) -> None:
        target = self.stack[-1]
        if type(target) is not list and not isinstance(target, Bag):
            raise ValueError(f"items are appended to a {type(target).__name__}")
        (target.items if isinstance(target, Bag) else target).extend(values)

    # objects

    def _global(self, name: str):
        self.stack.append(Global(".".join(name.split(" ", 1))))

    def _stack_global(self, _):
        module, name = self._last(2)
        if type(module) is not str or type(name) is not str:
            raise ValueError("the name of a class is not text")
        self.stack.append(Global(f"{module}.{name}"))

    def _reduce(self, _):
        function, args = self._last(2)
        self.stack.append(_make(function, args))

    _newobj = _reduce

    def _newobj_ex(self, _):
        function, args, keywords = self._last(3)
        self.stack.append(_make(function, args))
        if isinstance(self.stack[-1], Bag) and type(keywords) is dict:
            self.stack[-1].items.extend(keywords.items())

    def _inst(self, name: str):
        args = tuple(self._pop_mark())
        self._global(name)
        self.stack.append(_make(self.stack.pop(), args))

    def _obj(self, _):
        function, *args = self._pop_mark()
        self.stack.append(_make(function, tuple(args)))

    def _build(self, _):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Bag):
            for part in state if type(state) is tuple else (state,):
                if type(part) is dict:
                    target.state.update(part)
        elif not isinstance(target, dict | Tensor):
            raise ValueError(f"attributes are set on a {type(target).__name__}")

    def _binpersid(self, _):
        """A storage: ("storage", its class, key, device, number of elements)."""
        what = self.stack.pop()
        if type(what) is not tuple or len(what) != 5 or what[0] != "storage":
            raise ValueError("a persistent id that is not torch's ('storage', class, key, device, elements)")
        _, kind, key, _, count = what
        dtype = STORAGES.get(kind.name) if isinstance(kind, Global) else None
        if dtype is None or type(key) is not str or type(count) is not int or not key.isalnum():
            raise ValueError("a storage whose class, key or size is not known")
        if key not in self.storages:
            self.storages[key] = Storage(read_values(self.read_storage(key), dtype))
        if self.storages[key].values.dtype != dtype:
            raise ValueError(f"storage {key[:80]!r} is used as {self.storages[key].values.dtype} and as {dtype}")
        self.stack.append(self.storages[key])


_PUSH = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
    "BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()
)
_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}


def _key(key: Any) -> Any:
    """Only these are hashed: a tuple nested a million times would end the process."""
    if not isinstance(key, str | bytes | int | float | None | Global | Bag):
        raise ValueError(f"a {type(key).__name__} is the key of a dictionary")
    return key


def _make(function: Any, args: Any) -> Any:
    """What a call would have returned, for the few that are known; for any other the note that it was wanted."""
    if type(args) is not tuple:
        raise ValueError("the arguments of a call are not a tuple")
    if not isinstance(function, Global):
        return Bag(f"call of a {function.name if isinstance(function, Bag) else type(function).__name__}", args)
    if function.name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        return view(*args[:4])
    if function.name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        if not args or not isinstance(args[0], Tensor):
            raise ValueError("a parameter without a tensor")
        return args[0]
    if function.name == "collections.OrderedDict" and not args:
        return {}
    if function.name == "collections.OrderedDict" and len(args) == 1 and type(args[0]) is list:
        return {_key(key): value for key, value in args[0]}
    if function.name in ("builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset"):
        return list(args[0]) if args and type(args[0]) is list else []
    if function.name == "_codecs.encode" and len(args) == 2 and type(args[0]) is str and args[1] == "latin1":
        return args[0].encode("latin1")  # how protocol 2 writes bytes
    if function.name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"):
        return _number(*args)
    if function.name == "torch.Size" and len(args) == 1 and type(args[0]) in (tuple, list):
        return tuple(args[0])
    return Bag(function.name, args)


def _number(dtype: Any, data: Any) -> int | float:
    """A scalar of numpy."""
    name = dtype.args[0] if isinstance(dtype, Bag) and dtype.args else None
    code = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i"}.get(name) if type(name) is str else None
    if code is None or type(data) is not bytes:
        raise ValueError("a scalar of numpy that is no number")
    return struct.unpack(code, data)[0]
