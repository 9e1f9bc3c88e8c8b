"""The shape of the package: no circles between modules, and one meaning for each class name."""

from __future__ import annotations

import ast
import graphlib
from collections import defaultdict
from collections.abc import Iterator

import grimp

from tests.cli.shell import ROOT


def test_no_module_needs_itself() -> None:
    """Through no chain of imports, at the top of a file, inside a function, or for types alone."""
    graph = grimp.build_graph("difc_ray", cache_dir=None, exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 100
    order = list(graphlib.TopologicalSorter(imports).static_order())  # raises, and names the circle
    assert set(order) == set(imports)


def public_classes() -> Iterator[tuple[str, str]]:
    """(name, file) of every class of the package whose name does not begin with an underscore."""
    for path in sorted((ROOT / "difc_ray").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, str(path.relative_to(ROOT))


def test_a_class_name_has_one_meaning() -> None:
    places = defaultdict(list)
    for name, file in public_classes():
        places[name].append(file)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
