"""Dictionaries, dataclasses and plain assignments of a Python file: parsed, never run.

Read are literals, arithmetic on them, names that were assigned such values before, `dict(…)`, a configuration class
called with keywords, and what a later line changes in a dictionary by `x["key"] = …` or `x.update(…)`. Everything else
is an `Unread` value: harmless where no count depends on it, else an error that names the field.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import NamedTuple

from gptcalc.errors import UnreadableFileError, shown
from gptcalc.reading.record import MOST_BITS, Unread

#: Parsing takes some hundred bytes of memory for each character; a file of source code is smaller.
MOST_SOURCE_BYTES = 2**20
#: Expressions that nest deeper are no literals that a person wrote.
MOST_DEPTH = 60
#: As in `gptcalc.ledger.expression`: larger powers are a slip.
MOST_EXPONENT = 64
#: Longest list that `[…] * n` makes: an entry for each layer.
MOST_ENTRIES = 10_000
#: How many entries may be copied from one dictionary, list or scope to another, so that no file takes minutes.
MOST_COPIED = 2_000_000
#: The key under which a dictionary keeps that something in it could not be read, whatever its names.
UNKNOWN_KEYS = "**"


class Found(NamedTuple):
    """A dictionary or class of a file, by the name it is assigned to, and whether it is the file's own assignments."""

    name: str
    fields: Mapping[str, object]
    line: int
    is_file: bool = False


def dictionaries(text: str, where: str) -> list[Found]:
    """Every dictionary and class in `text`, in order, and last what the file itself assigns."""
    if len(text) > MOST_SOURCE_BYTES:
        raise UnreadableFileError(f"{where}: more than 1 MiB; allowed: a Python file with a model's config")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
        reader = _Reader(where)
        reader.block(tree.body, certain=True)
    except SyntaxError as error:
        raise UnreadableFileError(f"{where}: not Python: {error.msg} (line {error.lineno})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        said = str(error).splitlines() or ["nested too deeply"]
        raise UnreadableFileError(f"{where}: not Python that can be read: {said[0]}") from None
    own = {key: value for key, value in reader.names.items() if not isinstance(value, Mapping)}
    return [*reader.found, Found("", own, 1, is_file=True)]


class _Reader:
    """One pass over the statements of a file; `certain` where a statement runs whenever the file does."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.names: dict[str, object] = {}
        self.classes: dict[str, dict[str, object]] = {}
        self.found: list[Found] = []
        self.copied = 0

    def spend(self, *copied: Sized) -> None:
        """Keep the work that a small file can ask for bounded."""
        self.copied += sum(map(len, copied))
        if self.copied > MOST_COPIED:
            raise UnreadableFileError(f"{self.where}: copies its dictionaries too often; allowed: a model's config")

    def block(self, body: Iterable[ast.stmt], *, certain: bool) -> None:
        for statement in body:
            self.statement(statement, certain=certain)

    def statement(self, node: ast.stmt, *, certain: bool) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.function(node)
            case ast.ClassDef():
                self.class_(node)
            case ast.If() if ast.unparse(node.test) in ("__name__ == '__main__'", "'__main__' == __name__"):
                self.block(node.body, certain=certain)
            case ast.With() | ast.AsyncWith():
                self.block(node.body, certain=certain)
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Expr():
                self.binding(node, certain=certain)
            case _:
                self.inside(node)

    def binding(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr, *, certain: bool) -> None:
        match node:
            case ast.Assign():
                for target in node.targets:
                    self.assign(target, node.value, certain=certain)
            case ast.AnnAssign(value=None):
                self.bind(node.target, Unread(node.lineno), certain=certain)
            case ast.AnnAssign(value=ast.expr() as value):
                self.assign(node.target, value, certain=certain)
            case ast.AugAssign():
                both = ast.copy_location(ast.BinOp(node.target, node.op, node.value), node)
                self.bind(node.target, self.value(both), certain=certain)
            case ast.Expr(value=ast.Dict() as value):
                self.bind(ast.Name(""), self.value(value), certain=certain, line=node.lineno)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) as call):
                self.method(name, method, call, certain=certain)

    def inside(self, node: ast.AST) -> None:
        """Statements that may run or not, once or many times."""
        if isinstance(node, ast.For | ast.AsyncFor):
            self.bind(node.target, Unread(node.lineno), certain=True)
        for _, field in ast.iter_fields(node):
            for child in field if isinstance(field, list) else ():
                if isinstance(child, ast.stmt):
                    self.statement(child, certain=False)
                elif isinstance(child, ast.ExceptHandler | ast.match_case):
                    self.inside(child)

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """A scope of its own, whose arguments nobody knows."""
        self.spend(self.names)
        outside = dict(self.names)
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            self.names[argument.arg] = Unread(node.lineno)
        self.block(node.body, certain=True)
        self.names = outside

    def class_(self, node: ast.ClassDef) -> None:
        """The fields of a class, as a dataclass has them, and the dictionaries in its methods."""
        outside = self.names
        self.names = {}
        fields = [child for child in node.body if isinstance(child, ast.Assign | ast.AnnAssign)]
        inherited = [
            self.classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in self.classes
        ]
        for base in reversed(inherited):
            self.spend(base)
            self.names |= base
        self.block(fields, certain=True)
        self.spend(outside)
        own, self.names = self.names, dict(outside)
        self.classes[node.name] = own
        if own:
            self.found.append(Found(node.name, own, node.lineno))
        self.block((child for child in node.body if child not in fields), certain=True)
        self.names = outside

    def assign(self, target: ast.expr, value: ast.expr, *, certain: bool) -> None:
        sequence = ast.Tuple | ast.List
        if isinstance(target, sequence) and isinstance(value, sequence) and len(target.elts) == len(value.elts):
            for one, its in zip(target.elts, value.elts, strict=True):
                self.bind(one, self.value(its), certain=certain)
        else:
            self.bind(target, self.value(value), certain=certain)

    def bind(self, target: ast.expr, value: object, *, certain: bool, line: int = 0) -> None:
        """Give a name, or a key of a dictionary, its value; two values that depend on how the file runs are none."""
        match target:
            case ast.Name(id=name):
                line = line or target.lineno
                if isinstance(value, dict):
                    self.found.append(Found(name, value, line))
                same = not isinstance(value, list | dict) and self.names.get(name) == value
                known = certain or name not in self.names or same
                self.names[name] = value if known else Unread(line)
            case ast.Subscript(value=ast.Name(id=name)):
                owner = self.names.get(name)
                if isinstance(owner, dict):
                    key = self.value(target.slice)
                    key = key if isinstance(key, str) else UNKNOWN_KEYS
                    owner[key] = value if certain else Unread(target.lineno)
            case ast.Tuple() | ast.List():
                for one in target.elts:
                    self.bind(one, Unread(target.lineno), certain=True)
            case ast.Starred():
                self.bind(target.value, Unread(target.lineno), certain=True)

    def method(self, name: str, method: str, call: ast.Call, *, certain: bool) -> None:
        """`x.update(…)`, and other methods that change a dictionary."""
        owner = self.names.get(name)
        if not isinstance(owner, dict) or method not in ("update", "setdefault", "pop", "popitem", "clear"):
            return
        changes = self.merged(call) if method == "update" else {UNKNOWN_KEYS: Unread(call.lineno)}
        owner |= changes if certain else dict.fromkeys(changes, Unread(call.lineno))

    def value(self, node: ast.expr, depth: int = 0) -> object:
        """The value of an expression, `Unread` where only running it could tell."""
        unread = Unread(getattr(node, "lineno", 0))
        found: object = unread
        match node:
            case _ if depth > MOST_DEPTH:
                pass
            case ast.Constant(value=None | bool() | int() | float() | str() as constant):
                found = constant
            case ast.Name(id=name):
                found = self.names.get(name, unread)
            case ast.Dict():
                found = self.dictionary(node, depth)
            case ast.List() | ast.Tuple() | ast.Set():
                items = [self.value(item, depth + 1) for item in node.elts]
                found = unread if any(isinstance(item, Unread) for item in items) else items
            case ast.UnaryOp() | ast.BinOp():
                found = self.arithmetic(node, depth, unread)
            case ast.Subscript():
                owner, key = self.value(node.value, depth + 1), self.value(node.slice, depth + 1)
                found = owner.get(key, unread) if isinstance(owner, dict) and isinstance(key, str) else unread
            case ast.Call():
                found = self.call(node, unread)
        return found

    def arithmetic(self, node: ast.UnaryOp | ast.BinOp, depth: int, unread: Unread) -> object:
        """Numbers put together; dictionaries and lists too."""
        if isinstance(node, ast.UnaryOp):
            one = self.value(node.operand, depth + 1)
            known = isinstance(one, int | float) and type(node.op) in _UNARY
            return _UNARY[type(node.op)](one) if known else unread
        left, right = self.value(node.left, depth + 1), self.value(node.right, depth + 1)
        self.spend(*(side for side in (left, right) if isinstance(side, list | dict)))
        if isinstance(left, dict) and isinstance(right, dict):
            found: object = left | right if isinstance(node.op, ast.BitOr) else None
        elif isinstance(left, list):
            found = _lists(node.op, left, right)
        else:
            found = _numbers(node.op, left, right)
        return unread if found is None else found

    def dictionary(self, node: ast.Dict, depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        written: set[str] = set()
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self.value(value_node, depth + 1)
            if key_node is None:
                self.spend(value if isinstance(value, dict) else ())
                found |= value if isinstance(value, dict) else {UNKNOWN_KEYS: Unread(value_node.lineno)}
                continue
            key = self.value(key_node, depth + 1)
            if not isinstance(key, str):
                key, value = UNKNOWN_KEYS, Unread(key_node.lineno)
            if key in written and key != UNKNOWN_KEYS:
                raise UnreadableFileError(
                    f"{self.where}: the key {shown(key)} stands twice in one dictionary (line {key_node.lineno})"
                )
            written.add(key)
            found[key] = value
        return found

    def call(self, node: ast.Call, unread: Unread) -> object:
        match node.func:
            case ast.Name(id="dict"):
                return self.merged(node)
            case ast.Name(id=name) if name.endswith("Config") and not node.args and node.keywords:
                defaults = self.classes.get(name, {})
                self.spend(defaults)
                given = self.merged(node)
                return unread if UNKNOWN_KEYS in given else {**defaults, **given}
            case ast.Name(id="field"):
                return next((self.value(word.value) for word in node.keywords if word.arg == "default"), unread)
            case ast.Attribute(attr="copy", value=ast.Name(id=name)) | ast.Name(id="deepcopy" as name):
                owner = self.value(node.args[0]) if node.args else self.names.get(name)
                self.spend(owner if isinstance(owner, dict) else ())
                return dict(owner) if isinstance(owner, dict) else unread
        return unread

    def merged(self, call: ast.Call) -> dict[str, object]:
        """The dictionary that `dict(*args, **keywords)` makes."""
        found: dict[str, object] = {}
        for argument in (*call.args, *(word.value for word in call.keywords if word.arg is None)):
            value = self.value(argument)
            self.spend(value if isinstance(value, dict) else ())
            found |= value if isinstance(value, dict) else {UNKNOWN_KEYS: Unread(call.lineno)}
        return found | {word.arg: self.value(word.value) for word in call.keywords if word.arg is not None}


def _lists(op: ast.operator, left: list[object], right: object) -> list[object] | None:
    """Two lists in one, or a flat list many times; `None` where that is not asked for, or is too long."""
    if isinstance(op, ast.Add) and isinstance(right, list) and len(left) + len(right) <= MOST_ENTRIES:
        return left + right
    if isinstance(op, ast.Mult) and isinstance(right, int) and 0 <= len(left) * right <= MOST_ENTRIES:
        return None if any(isinstance(item, list | dict) for item in left) else left * right
    return None


def _numbers(op: ast.operator, left: object, right: object) -> float | None:
    """Arithmetic as Python does it, within bounds; `None` for everything else."""
    if not isinstance(left, int | float) or not isinstance(right, int | float) or type(op) not in _BINARY:
        return None
    if isinstance(op, ast.Pow) and (abs(right) > MOST_EXPONENT or _bits(left) > MOST_BITS):
        return None
    try:
        value = _BINARY[type(op)](left, right)
    except (ArithmeticError, ValueError):
        return None
    return value if isinstance(value, int | float) and _bits(value) <= MOST_BITS else None


def _bits(value: float) -> int:
    return value.bit_length() if isinstance(value, int) else 0


_UNARY: dict[type[ast.unaryop], Callable[..., object]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_BINARY: dict[type[ast.operator], Callable[..., object]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
