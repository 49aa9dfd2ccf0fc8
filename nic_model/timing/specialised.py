"""The timing rules compiled for one device, bus and MAC: what never changes stands in them as numbers.

Made from the source of `stages`, `entering` and `compiled`, so there is one statement of the rules. Numba finds what it
compiled by the file that a function stands in, so the rules are written to a file: in numba's cache folder, by its
content.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np

from nic_model.timing import compiled, entering, receive_rows, rules, stages


class _Numbers(ast.NodeTransformer):
    """`p.name` becomes its number, and `stages.name` plain `name`: all rules stand in one module."""

    def __init__(self, numbers: dict[str, int]) -> None:
        self._numbers = numbers

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """Called by ast for each attribute."""
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "p":
            return ast.copy_location(ast.Constant(self._numbers[node.attr]), node)
        if isinstance(node.value, ast.Name) and node.value.id in _TOGETHER:
            return ast.copy_location(ast.Name(node.attr, ast.Load()), node)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """Called by ast for each import: what would be imported from the other rules stands beside them."""
        if (node.module or "").rpartition(".")[2] in _TOGETHER or node.module == "__future__":
            return None
        node.names = [name for name in node.names if name.name not in _TOGETHER]
        return node if node.names else None


_TOGETHER = ("rules", "receive_rows", "stages", "entering")


def _text(numbers: dict[str, int]) -> str:
    trees = [_Numbers(numbers).visit(ast.parse(inspect.getsource(module)))
             for module in (rules, receive_rows, stages, entering, compiled)]
    return "\n".join(["from __future__ import annotations", *map(ast.unparse, trees)])


def specialise(p: np.record) -> Mapping[str, Callable[..., int]]:
    """As `nic_model.timing.compiled.FUNCTIONS`, for the device of the record `p`, whose numbers may not change any
    more. Takes half a minute the first time. Raises OSError when numba's cache folder cannot be written."""
    return _specialised(tuple((name, int(p[name])) for name in p.dtype.names or ()))


@cache
def _specialised(numbers: tuple[tuple[str, int], ...]) -> Mapping[str, Callable[..., int]]:
    text = _text(dict(numbers))
    name = f"memnic_rules_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = Path(numba.config.CACHE_DIR) / f"{name}.py"  # type: ignore[attr-defined]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder) / path.name
            written.write_text(text)
            written.replace(path)  # whole, also when two processes write it
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # numba looks there for the module of what it finds in its cache
    spec.loader.exec_module(module)
    functions: Mapping[str, Callable[..., int]] = module.FUNCTIONS
    return functions
