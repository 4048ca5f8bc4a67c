"""Rewrite what CUDA has and neither C++ nor a macro can say; lines keep their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

COMMENT_OR_STRING = re.compile(r'//(?:\\\n|[^\n])*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|' r"'(?:\\.|[^'\\\n])+'", re.DOTALL)
QUOTED_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"[^\n]*$', re.MULTILINE)
SHARED = re.compile(r"(extern\s+)?__shared__\b([^;{}=]*);")
ALIGNMENT = re.compile(r"(?:__align__|alignas)\s*\(([^()]*)\)")
DECLARATOR = re.compile(r"(.*?)(\w+)\s*((?:\[[^\]]*\]\s*)*)", re.DOTALL)
LAUNCH_BOUNDS = re.compile(r"__launch_bounds__\s*\(")


class DialectError(RuntimeError):
    """A form of CUDA that the emulator does not have."""


def without_comments(code: str) -> str:
    """Return the code with each comment blank, its line breaks kept."""
    blank = re.compile(r"[^\n]")
    return COMMENT_OR_STRING.sub(
        lambda found: blank.sub(" ", found[0]) if found[0].startswith(("//", "/*")) else found[0], code
    )


def with_includes(code: str, filename: str, folders: Iterable[Path], seen: set[Path] | None = None) -> str:
    """Return the code with each `#include "..."` that a folder holds in its place, once."""
    seen = set() if seen is None else seen
    folders = list(folders)

    def included(found: re.Match[str]) -> str:
        for folder in folders:
            path = (folder / found[1]).resolve()
            if not path.is_file():
                continue
            if path in seen:
                return ""
            seen.add(path)
            text = with_includes(without_comments(path.read_text()), path.name, folders, seen)
            line = code.count("\n", 0, found.start()) + 2
            return f'#line 1 "{path.name}"\n{text}\n#line {line} "{filename}"'
        return found[0]

    return QUOTED_INCLUDE.sub(included, code)


def matching_parenthesis(code: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(code)):
        depth += {"(": 1, ")": -1}.get(code[position], 0)
        if depth == 0:
            return position
    raise DialectError("a parenthesis is never closed")


def with_launch_bounds(code: str) -> str:
    """Return the code with a check of `__launch_bounds__` at the start of each kernel that has them."""
    parts, done = [], 0
    for found in LAUNCH_BOUNDS.finditer(code):
        closing = matching_parenthesis(code, found.end() - 1)
        bounds = " ".join(code[found.end() : closing].split())
        parameters_end = matching_parenthesis(code, code.index("(", closing)) + 1
        body = re.compile(r"\s*\{").match(code, parameters_end)
        if body is None:
            continue
        parts += [code[done : body.end()], f" emu_check_launch_bounds({bounds});"]
        done = body.end()
    return "".join([*parts, code[done:]])


def split_declarators(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += {"<": 1, "(": 1, "[": 1, ">": -1, ")": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def shared_declaration(found: re.Match[str]) -> str:
    """Return the C++ for one `__shared__` declaration."""
    lines = found[0].count("\n")
    alignment = ALIGNMENT.search(found[2])
    attribute = f" __attribute__((aligned({alignment[1]})))" if alignment else ""
    first, *others = split_declarators(ALIGNMENT.sub(" ", found[2]))
    parsed = DECLARATOR.fullmatch(" ".join(first.split()))
    if parsed is None or not parsed[1].strip():
        raise DialectError(f"not understood: {' '.join(found[0].split())}")
    element = parsed[1].strip()
    if found[1]:
        return f'{element} *{parsed[2]} = ({element} *)emu_dynamic_shared("{parsed[2]}");' + "\n" * lines
    written = []
    for name, extents in [(parsed[2], parsed[3]), *(declared(other, found[0]) for other in others)]:
        written.append(f"typedef {element} emu_type_of_{name} {extents.strip()}{attribute}; EMU_SHARED({name});")
    return " ".join(written) + "\n" * lines


def declared(text: str, whole: str) -> tuple[str, str]:
    parsed = DECLARATOR.fullmatch(" ".join(text.split()))
    if parsed is None or parsed[1].strip():
        raise DialectError(f"not understood: {' '.join(whole.split())}")
    return parsed[2], parsed[3]


def rewrite(code: str, filename: str, folders: Iterable[Path] = ()) -> str:
    """Return C++ that does on the emulator what the CUDA source does on a GPU."""
    text = with_includes(without_comments(code), filename, folders)
    text = SHARED.sub(shared_declaration, with_launch_bounds(text))
    for number, line in enumerate(text.split("\n"), 1):
        for unknown in ("__shared__", "<<<", "asm volatile", "asm("):
            if unknown in line:
                raise DialectError(f"{filename}:{number}: the emulator does not have this form of {unknown}")
    return text
