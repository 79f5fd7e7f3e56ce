"""Mutants of a module: its source with one small fault, made by cosmic-ray's operators."""

from __future__ import annotations

import ast
import contextlib
import difflib
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow")
_BITS = ("RShift", "LShift", "BitOr", "BitAnd", "BitXor")
_ORDER = ("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE")
# `is` does not replace `==` (the same for small numbers), nor a shift a product (a type error).
OPERATORS = [
    *(f"ReplaceBinaryOperator_{a}_{b}" for names in (_ARITHMETIC, _BITS) for a, b in permutations(names, 2)),
    *(f"ReplaceComparisonOperator_{a}_{b}" for names in (_ORDER, ("Is", "IsNot")) for a, b in permutations(names, 2)),
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("USub", "Not", "Invert")),
    *("NumberReplacer", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("AddNot", "ZeroIterationForLoop", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
]
# Code that decides no number, by the type of its syntax-tree node or by its text.
_TYPES = ("assert_stmt", "decorator", "fstring", "raise_stmt", "tfpdef")
_TEXTS = {
    "atom_expr": re.compile(r"(print|parser\.\w+|self\.say|warnings\.warn)\("),
    "if_stmt": re.compile(r"if (TYPE_CHECKING|__name__ ==)"),
    "argument": re.compile(r"(fused|inplace|non_blocking|persistent_workers)="),
}
_ANNOTATIONS = (("funcdef", "->"), ("annassign", ":"))  # what follows this token


@dataclass(frozen=True)
class Mutant:
    """A module with one fault, at `line`: `text` in place of `source`."""

    module: str
    line: int
    operator: str
    source: str
    text: str

    def diff(self, around: int = 0) -> list[str]:
        """Return the changed lines after - and +, with `around` lines of context."""
        lines = difflib.unified_diff(self.source.splitlines(), self.text.splitlines(), n=around, lineterm="")
        return [line for line in lines if not line.startswith(("---", "+++", "@@"))]

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.operator}: " + " ".join(f"{x[0]} {x[1:].strip()}" for x in self.diff())


def mutants(module: str, source: str, draw: random.Random) -> Iterator[Mutant]:
    """Yield one mutant of every place that decides a number, in random order."""
    nodes = list(ast_nodes(get_ast(source)))
    operators = {name: get_operator(f"core/{name}")() for name in OPERATORS}
    places: defaultdict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    for name, operator in operators.items():
        found = [(node, start) for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (node, start) in enumerate(found):
            if _counts(node):
                places[start].append((name, occurrence))
    for place in draw.sample(sorted(places), len(places)):
        name, occurrence = draw.choice(places[place])
        text = mutate_code(source, operators[name], occurrence)
        with contextlib.suppress(SyntaxError):  # as `while not a := b`
            ast.parse(text)
            yield Mutant(module, place[0], name, source, text)


def _counts(node: Any) -> bool:
    """Whether a node of the syntax tree may decide a number."""
    if node.type == "operator" and node.parent.type in ("parameters", "dictorsetmaker"):
        return False  # `*` and `**` that are not operators
    while node is not None:
        before, text = node.get_previous_sibling(), _TEXTS.get(node.type)
        if node.type in _TYPES or (text and text.match(node.get_code(include_prefix=False))):
            return False
        if before is not None and (node.parent.type, before.get_code().strip()) in _ANNOTATIONS:
            return False
        node = node.parent
    return True
