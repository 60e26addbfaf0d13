"""The docstrings of the public names: each has an example, and the examples run as they stand."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator

import pytest
import torch

import latent_kernels

# Methods that torch calls for printing and for `state_dict`, not users.
_CALLED_BY_TORCH = {"extra_repr", "forward", "get_extra_state", "set_extra_state", "train"}


def public_methods(owner: type) -> Iterator[tuple[str, object]]:
    """Yield our own public methods of a class, inherited ones too; properties have no example."""
    for name in dir(owner):
        method = inspect.getattr_static(owner, name)
        function = getattr(method, "__func__", method)
        ours = inspect.isfunction(function) and function.__module__.startswith("latent_kernels")
        if ours and not name.startswith("_") and name not in _CALLED_BY_TORCH:
            yield name, function


def documented() -> dict[str, object]:
    """Return every public function, class and method by its name."""
    found: dict[str, object] = {}
    for name in latent_kernels.__all__:
        found[name] = owner = getattr(latent_kernels, name)
        if inspect.isclass(owner):
            found.update({f"{name}.{method}": f for method, f in public_methods(owner)})
    return found


NAMES = documented()
# By object, so that a method that several classes inherit runs once.
EXAMPLES = {id(o): name for name, o in NAMES.items() if ">>>" in (o.__doc__ or "")}.values()


def has_example(name: str) -> bool:
    """Return whether a name has an example of its own or, for a method, in its class."""
    if ">>>" in (inspect.getdoc(NAMES[name]) or ""):
        return True
    owner, _, method = name.partition(".")
    return f".{method}(" in (inspect.getdoc(NAMES[owner]) or "") if method else False


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example(name: str) -> None:
    assert has_example(name), f"the docstring of {name} must have an Example section"


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str) -> None:
    """Each example runs by itself; the state of torch's generator is not part of an example."""
    (example,) = doctest.DocTestFinder(recurse=False).find(NAMES[name], name, globs={})
    output: list[str] = []
    with torch.random.fork_rng(devices=[]):
        result = doctest.DocTestRunner().run(example, out=output.append)
    assert result.attempted > 1
    assert result.failed == 0, "".join(output)
