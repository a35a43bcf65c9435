#!/usr/bin/env python3
"""Checks the rules of the house that no linter knows: ``scripts/house_rules.py [ROOT]``.

Prints one line per violation, ``path:line: rule: sentence``, and exits with 1 if there is one.
The rules and their reasons are in CONTRIBUTING.md. Everything is read from the source text;
nothing of the project is imported. Imports under ``TYPE_CHECKING`` count like any other: a type
is a dependency too.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_FUNCTION_LINES = 70
_FILE_LINES = 500

_PACKAGE = "chucky"
_OTHER_HALF = ("chucky.server", "chucky.offline", "chucky.cli")
_PURE = tuple(
    f"chucky.{name}"
    for name in ("errors", "jsontext", "legacy", "messages", "tokenform", "tokens", "wire")
)
_IMPURE_ROOTS = {"asyncio", "select", "selectors", "socket", "ssl", "websockets"}
_CLIENT_ONLY = ("chucky.client", "chucky.session", "chucky.connection")
_SEPARATE = ("chucky.server.engines", "chucky.server.ledger", "chucky.server.edge")
_ONE_HOME = {
    "aiohttp",
    "anthropic",
    "claude_agent_sdk",
    "cryptography",
    "genai_prices",
    "mcp",
    "psycopg",
    "psycopg_pool",
    "sqlite3",
}
_VAGUE_NAMES = {"common", "helper", "helpers", "misc", "types", "util", "utils"}

# Written so that no pattern matches its own source.
_TEXT_RULES = (
    (
        "leftover",
        re.compile(r"\b(?:TO[D]O|FIX[M]E|X[X]X)\b"),
        "{!r} marks unfinished work; finish it or file an issue.",
    ),
    (
        "machine-path",
        re.compile(r"(?<![\w.])/(?:work|root|tmp)/"),
        "{!r} is a place on one machine; use a relative path or a temporary directory.",
    ),
    (
        "registry-host",
        re.compile(r"pypi[.]org|pythonhosted[.]org|npmjs[.]org|crates[.]io|proxy[.]golang[.]org"),
        "{!r} names a package registry; installers are told where to look by their own settings.",
    ),
)
_TEXT_DIRECTORIES = (".ci", "bench", "docs", "examples", "scripts", "src", "tests")
_TEXT_SUFFIXES = {".md", ".toml", ".txt"}

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Violation(NamedTuple):
    """One broken rule, where, and what to do about it."""

    path: Path
    line: int
    rule: str
    sentence: str


class Import(NamedTuple):
    """One imported name, dotted and absolute, e.g. ``chucky.wire.decode_frame``."""

    name: str
    line: int


@dataclass(frozen=True)
class Module:
    """One parsed file of ``src``."""

    name: str
    path: Path
    source: str
    tree: ast.Module
    imports: list[Import] = field(default_factory=list)


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _is_within_any(name: str, packages: Iterable[str]) -> bool:
    return any(_is_within(name, package) for package in packages)


# --- reading the source -----------------------------------------------------------------------


def read_modules(root: Path) -> list[Module]:
    """Parse every module of ``root/src``."""
    source_root = root / "src"
    return [_read_module(path, source_root) for path in sorted(source_root.rglob("*.py"))]


def _read_module(path: Path, source_root: Path) -> Module:
    parts = list(path.relative_to(source_root).with_suffix("").parts)
    is_package = parts[-1] == "__init__"
    if is_package:
        parts.pop()
    name = ".".join(parts)
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, filename=str(path))
    package = name if is_package else name.rpartition(".")[0]
    return Module(name, path, source, tree, list(_imports(tree, package)))


def _imports(tree: ast.Module, package: str) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if node.level == 0:
        return node.module or ""
    parents = package.split(".")
    base = parents[: len(parents) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


# --- who may import whom ----------------------------------------------------------------------


def _client_imports_other_half(module: Module) -> Iterator[Violation]:
    if _is_within_any(module.name, _OTHER_HALF):
        return
    for name, line in module.imports:
        if _is_within_any(name, _OTHER_HALF):
            yield Violation(
                module.path,
                line,
                "client-half",
                f"{module.name} belongs to the client half and may not import {name}.",
            )


def _server_imports_package_root(module: Module, modules: dict[str, Module]) -> Iterator[Violation]:
    if not _is_within_any(module.name, _OTHER_HALF[:2]):
        return
    for name, line in module.imports:
        parent, _, member = name.rpartition(".")
        if parent == _PACKAGE and name not in modules and member != "__version__":
            yield Violation(
                module.path,
                line,
                "server-half",
                f"{member} comes from the client's front door; import the module that defines it.",
            )


def _reached(start: Module, modules: dict[str, Module]) -> Iterator[tuple[Import, str]]:
    """Yield each name imported by `start` or by what it imports, with the first hop to it."""
    seen = {start.name, _PACKAGE}  # the front door is checked by its own rules
    queue = [(found, found) for found in start.imports]
    while queue:
        first, found = queue.pop()
        yield first, found.name
        for target in _modules_of(found.name, modules):
            if target not in seen:
                seen.add(target)
                queue.extend((first, hop) for hop in modules[target].imports)


def _modules_of(name: str, modules: dict[str, Module]) -> list[str]:
    return [candidate for candidate in (name, name.rpartition(".")[0]) if candidate in modules]


def _reaches_forbidden(module: Module, modules: dict[str, Module]) -> Iterator[Violation]:
    is_pure = module.name in _PURE
    is_server = _is_within(module.name, "chucky.server")
    if not (is_pure or is_server):
        return
    reported: set[str] = set()
    for first, name in _reached(module, modules):
        if is_pure and name.partition(".")[0] in _IMPURE_ROOTS:
            rule, target = "pure-module", name.partition(".")[0]
        elif is_server and _is_within_any(name, _CLIENT_ONLY):
            rule, target = "server-half", ".".join(name.split(".")[:2])
        else:
            continue
        if target not in reported:
            reported.add(target)
            way = "" if _is_within(first.name, target) else f" (it does, through {first.name})"
            yield Violation(
                module.path, first.line, rule, f"{module.name} may not import {target}{way}."
            )


def _separate_parts_meet(module: Module) -> Iterator[Violation]:
    own = next((part for part in _SEPARATE if _is_within(module.name, part)), None)
    others = [part for part in _SEPARATE if part != own]
    for name, line in module.imports if own else ():
        if _is_within_any(name, others):
            yield Violation(
                module.path,
                line,
                "separate-parts",
                f"engines, ledger and edge do not import each other; {own} imports {name}.",
            )


def _more_than_one_home(modules: list[Module]) -> Iterator[Violation]:
    homes: dict[str, dict[str, Violation]] = {}
    for module in modules:
        for name, line in module.imports:
            root = name.partition(".")[0]
            if root in _ONE_HOME:
                homes.setdefault(root, {}).setdefault(
                    module.name, Violation(module.path, line, "one-home", "")
                )
    for root, found in sorted(homes.items()):
        if len(found) > 1:
            sentence = f"{root} may be imported by one module only; it is by {', '.join(found)}."
            yield from (violation._replace(sentence=sentence) for violation in found.values())


def import_violations(modules: list[Module]) -> Iterator[Violation]:
    """Yield every import that crosses a wall of the house."""
    by_name = {module.name: module for module in modules}
    for module in modules:
        yield from _client_imports_other_half(module)
        yield from _server_imports_package_root(module, by_name)
        yield from _reaches_forbidden(module, by_name)
        yield from _separate_parts_meet(module)
    yield from _more_than_one_home(modules)


# --- how a module is written ------------------------------------------------------------------


def module_violations(module: Module) -> Iterator[Violation]:
    """Yield what is wrong inside one module of ``src``."""
    last = module.name.rpartition(".")[2]
    if last in _VAGUE_NAMES:
        yield Violation(
            module.path, 1, "module-name", f"{last!r} says nothing; name the module for its job."
        )
    lines = module.source.count("\n")
    if lines > _FILE_LINES:
        sentence = f"{lines} lines, more than {_FILE_LINES}; split the module."
        yield Violation(module.path, _FILE_LINES + 1, "file-length", sentence)
    yield from _missing_docstrings(module)
    yield from _long_functions(module)
    if not _is_within(module.name, "chucky.cli"):
        yield from _prints(module)


def _missing_docstrings(module: Module) -> Iterator[Violation]:
    if any(part.startswith("_") for part in module.name.split(".")):
        return
    if ast.get_docstring(module.tree) is None:
        yield Violation(module.path, 1, "docstring", f"module {module.name} has no docstring.")
    for node in _public_definitions(module.tree):
        if ast.get_docstring(node) is None:
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield Violation(
                module.path,
                node.lineno,
                "docstring",
                f"public {kind} {node.name} has no docstring.",
            )


def _public_definitions(parent: ast.Module | ast.ClassDef) -> Iterator[ast.ClassDef | _Function]:
    for node in _statements(parent.body):
        if not isinstance(node, ast.ClassDef | _Function) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield node
            yield from _public_definitions(node)
        elif not _is_described_elsewhere(node):
            yield node


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body, and of the ``if`` and ``try`` blocks in it."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _is_described_elsewhere(node: _Function) -> bool:
    """Tell whether it is an overload, a setter, or takes its meaning from its base class."""
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"overload", "override", "setter", "deleter"})


def _long_functions(module: Module) -> Iterator[Violation]:
    for node in ast.walk(module.tree):
        if not isinstance(node, _Function):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)
        if lines > _FUNCTION_LINES:
            sentence = f"{node.name} has {lines} lines, more than {_FUNCTION_LINES}; split it."
            yield Violation(module.path, node.lineno, "function-length", sentence)


def _docstring_lines(node: _Function) -> int:
    if ast.get_docstring(node) is None:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def _prints(module: Module) -> Iterator[Violation]:
    for node in ast.walk(module.tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id == "print":
            sentence = "only chucky.cli prints; log it, or hand it to the caller."
            yield Violation(module.path, node.lineno, "print", sentence)


# --- the rest of the tree ---------------------------------------------------------------------


def text_violations(root: Path) -> Iterator[Violation]:
    """Yield what no text file of the project may contain."""
    for path in _text_files(root):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture or an archive
        for number, line in enumerate(lines, start=1):
            for rule, pattern, sentence in _TEXT_RULES:
                if match := pattern.search(line):
                    yield Violation(path, number, rule, sentence.format(match.group()))


def _text_files(root: Path) -> Iterator[Path]:
    yield from sorted(path for path in root.glob("*") if path.suffix in _TEXT_SUFFIXES)
    for name in _TEXT_DIRECTORIES:
        for path in sorted((root / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def script_violations(root: Path) -> Iterator[Violation]:
    """Yield each file of ``scripts`` that cannot be run."""
    for path in sorted((root / "scripts").glob("*")):
        if path.is_file() and not os.access(path, os.X_OK):
            yield Violation(path, 1, "executable", "a script has to be executable: chmod +x.")


def version_violations(root: Path) -> Iterator[Violation]:
    """Yield where pyproject, changelog and package disagree about the version."""
    places = {
        root / "pyproject.toml": r'^version = "([^"]+)"',
        root / "CHANGELOG.md": r"^## \[([^\]]+)\]",
        root / "src" / _PACKAGE / "__init__.py": r'^__version__(?:: [\w.\[\]]+)? = "([^"]+)"',
    }
    found = {path: _first_match(path, pattern) for path, pattern in places.items()}
    expected = found[root / "pyproject.toml"][0]
    for path, (version, line) in found.items():
        if version is None:
            yield Violation(path, line, "version", "no version was found here.")
        elif version != expected:
            sentence = f"the version here is {version}, in pyproject.toml it is {expected}."
            yield Violation(path, line, "version", sentence)


def _first_match(path: Path, pattern: str) -> tuple[str | None, int]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    match = re.search(pattern, text, re.MULTILINE)
    return (match[1], text.count("\n", 0, match.start()) + 1) if match else (None, 1)


def violations(root: Path) -> Iterator[Violation]:
    """Yield every violation below `root`, the root of a checkout."""
    modules = read_modules(root)
    yield from import_violations(modules)
    for module in modules:
        yield from module_violations(module)
    yield from text_violations(root)
    yield from script_violations(root)
    yield from version_violations(root)


def main(arguments: list[str]) -> int:
    """Check the checkout named in `arguments`, or the one this script is in."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    found = sorted(set(violations(root)))
    for path, line, rule, sentence in found:
        print(f"{path.relative_to(root)}:{line}: {rule}: {sentence}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
