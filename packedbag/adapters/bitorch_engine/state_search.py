"""Where the state dict is in what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packedbag.core.errors import DataError
from packedbag.io.state_metadata import Said, said_of_tables
from packedbag.io.torch_pickle import Foreign, StateDict, TensorRef

#: Keys under which checkpoints keep a model.
KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
#: Dicts inside dicts, at most.
DEEPEST = 8


def find_state(path: Path, content: object) -> tuple[dict[str, TensorRef], list[str], dict[str, Said]]:
    """Return the tensors of a checkpoint's model by name, the names of what else it holds, and what it says of tables.

    Raises:
        DataError: there is no model, or more than one; or what it says of a table is no description of one.
    """
    left_out: list[str] = []
    for _ in range(DEEPEST):
        if not isinstance(content, dict):
            what = "tensor" if isinstance(content, TensorRef) else type(content).__name__
            what = content.name if isinstance(content, Foreign) else what
            raise DataError(path, None, f"holds a {what}, not a state dict", "Save model.state_dict().")
        key = _key_of_model(path, content)
        if key is None:
            break
        left_out += [_readable(other) for other in content if other != key]
        content = content[key]
    else:
        raise DataError(path, None, f"has dicts inside dicts, more than {DEEPEST} deep", "Save model.state_dict().")
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, TensorRef)}
    said = said_of_tables(path, content.metadata if isinstance(content, StateDict) else None)
    return state, left_out + [_readable(name) for name in content if name not in state], said


def _key_of_model(path: Path, content: dict[Any, Any]) -> Any:
    """Return the key of the one dict inside that holds the model; None where ``content`` is its state dict."""
    for key in KEYS:
        if isinstance(content.get(key), dict) and _has_tensors(content[key]):
            return key
    if any(isinstance(value, TensorRef) for value in content.values()):
        return None
    inside = [
        key
        for key, value in content.items()
        if isinstance(value, dict) and "param_groups" not in value and _has_tensors(value)
    ]
    if len(inside) == 1:
        return inside[0]
    if not inside:
        raise DataError(path, None, "holds no tensors", "Save model.state_dict().")
    names = ", ".join(map(_readable, inside[:20]))
    raise DataError(path, None, f"holds several models: {names}", "Save the state dict of one of them.")


def _has_tensors(content: dict[Any, Any]) -> bool:
    """Say whether a tensor is somewhere inside; a dict that occurs many times is looked at once."""
    seen: set[int] = set()
    waiting: list[dict[Any, Any]] = [content]
    while waiting:
        taken = waiting.pop()
        if id(taken) in seen:
            continue
        seen.add(id(taken))
        for value in taken.values():
            if isinstance(value, TensorRef):
                return True
            if isinstance(value, dict):
                waiting.append(value)
    return False


def _readable(key: object) -> str:
    """Return a key for reading; other keys than texts may be of any size."""
    return key if isinstance(key, str) else f"a {type(key).__name__}"
