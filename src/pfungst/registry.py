"""What is known by name: found by its decorator, imported when asked for, or run from a file; all light."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import runpy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pfungst.errors import ConfigError, PfungstError
from pfungst.suggest import suggest

_DECORATED = re.compile(r'^@register\(((?:"[^"]+"(?:, )?)+)', re.MULTILINE)
Thing = TypeVar("Thing")


class Registry(Mapping[str, Any]):
    """The classes or functions of one kind, by name.

    One of `package` is known by the line ``@register("name")`` above it, without an import, so that
    ``--help`` can list it; one from anywhere else is known once its module has been imported or its file
    named.

    Args:
        kind: what they are, for messages.
        package: whose modules, one level deep, are read for the decorator.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._known: dict[str, Any] = {}

    def add(self, name: str, thing: Any) -> None:
        """Make a class or function known as `name`.

        Raises:
            ConfigError: the name is taken, or cannot stand in a specification.
        """
        taken = self._known.get(name, thing)
        if (taken.__module__, taken.__qualname__) != (thing.__module__, thing.__qualname__):
            raise ConfigError(f"the name {name!r} is taken by {taken.__qualname__}", "choose another name")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"{name!r} is no name for a {self.kind}", "use letters, digits, - and _")
        self._known[name] = thing

    def register(self, *names: str) -> Callable[[Thing], Thing]:
        """Decorator: make a class or function known by name; further names are aliases.

        Raises:
            ConfigError: no name, or one that is taken or no name.
        """
        if not names or not isinstance(names[0], str):
            raise ConfigError(f"a {self.kind} was registered without a name", 'write @register("name")')

        def keep(thing: Thing) -> Thing:
            for name in names:
                self.add(name, thing)
            return thing

        return keep

    def remove(self, name: str) -> None:
        """Forget what was added from outside of the package."""
        self._known.pop(name, None)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._modules(), *self._known})

    def get(self, name: str, default: Any = None) -> Any:
        """The class or function of that name.

        Raises:
            ConfigError: there is none and no default; a near name is suggested.
        """
        if name not in self._known and (module := self._modules().get(name)):
            importlib.import_module(f"{self.package}.{module}")
        if name not in self._known and default is None:
            raise ConfigError(f"unknown {self.kind} {name!r}", suggest(name, self.names()))
        return self._known.get(name, default)

    def find(self, spec: str, anything: bool = False) -> tuple[Any, str, str]:
        """What ``NAME[:REST]`` names, its name and the rest; ``FILE.py:NAME[:REST]`` runs the file first.

        Args:
            anything: also take what is in the file, or in ``package.module:NAME``, and not registered.

        Raises:
            ConfigError: no such file, module or name, or running it raises.
        """
        name, _, rest = spec.partition(":")
        found: Mapping[str, Any] = {}
        if name.endswith(".py"):
            found = _run(Path(name).resolve(), self.kind)
        elif anything and "." in name and name not in self:
            found = _imported(name, self.kind)
        else:
            return self.get(name), name, rest
        name, _, rest = rest.partition(":")
        if anything and name not in self and name in found:
            return found[name], name, rest
        if anything and name not in self:
            own = [n for n, thing in found.items() if not n.startswith("_") and callable(thing)]
            raise ConfigError(f"there is no {name!r} in {spec.partition(':')[0]}", suggest(name, own))
        return self.get(name), name, rest

    def name_of(self, thing: Any) -> str | None:
        """The name of exactly this class or function, None where it has none of its own."""
        return next((name for name, known in self._known.items() if known is thing), None)

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in self._modules()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def _modules(self) -> dict[str, str]:
        """Module by name, read from the sources."""
        spec = importlib.util.find_spec(self.package)
        found: dict[str, str] = {}
        for module in pkgutil.iter_modules(spec.submodule_search_locations if spec else None):
            place = module.module_finder.find_spec(module.name, None)
            loader: Any = place.loader if place else None
            source = loader.get_source(module.name) if hasattr(loader, "get_source") else None
            for names in _DECORATED.findall(source or ""):
                found |= dict.fromkeys(re.findall('"([^"]+)"', names), module.name)
        return found


@cache
def _run(file: Path, kind: str) -> Mapping[str, Any]:
    if not file.is_file():
        raise ConfigError(
            f"there is no file {file}", f"write FILE.py:NAME, where the file registers a {kind}"
        )
    with anybodys(f"{file} cannot be run:"):
        return runpy.run_path(str(file), run_name=str(file))  # two files may not register the same name


@contextmanager
def anybodys(what: str) -> Iterator[None]:
    """Raises ConfigError, beginning with `what`, for whatever code of anybody's raises; an exit too."""
    try:
        yield
    except PfungstError:
        raise
    except (Exception, SystemExit) as error:
        gpu = "cuda" in str(error).lower() or "nvidia" in str(error).lower()
        remedy = "return it on the CPU, without .cuda(): --device moves it" if gpu else "mend it"
        raise ConfigError(f"{what} {type(error).__name__}: {error}", remedy) from error


def called(function: Any, spec: str, options: Mapping[str, Any] | None = None) -> Any:
    """What a function of the user's returns; without options it takes none.

    Raises:
        ConfigError: it is none, needs other arguments, or raises.
    """
    try:
        inspect.signature(function).bind(**options or {})
    except TypeError as error:
        raise ConfigError(
            f"{spec} cannot be called: {error}",
            "give its arguments a default" + ("" if options is None else f", or write {spec}:name=value"),
        ) from None
    except ValueError:  # built in, without a signature
        pass
    with anybodys(f"{spec} raised"):
        return function(**options or {})


def _imported(name: str, kind: str) -> Mapping[str, Any]:
    try:
        return vars(importlib.import_module(name))
    except ImportError as error:
        raise ConfigError(f"{name!r} is no {kind} and no module: {error}", "write FILE.py:NAME") from None


def read_parameters(text: str, known: Mapping[str, Any], of: str) -> dict[str, Any]:
    """Parameters from ``name=value,name=value``.

    Args:
        text: what a specification says after the name.
        known: default values of the parameters that may be given.
        of: what they belong to, for messages.

    Raises:
        ConfigError: an unknown parameter, or a value of the wrong type.
    """
    found = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            raise ConfigError(f"unknown parameter {key!r} of {of}", suggest(key, known))
        found[key] = read_value(value, known[key], part)
    return found


def read_value(text: str, like: Any, part: str) -> Any:
    """A parameter's value from its text: of the type of `like`, where that says it, else what it looks like.

    Raises:
        ConfigError: a number or yes or no is needed and `part` of a specification holds something else.
    """
    if text.lower() in ("none", ""):
        return None
    if isinstance(like, bool):
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ConfigError(f"{part!r} is not yes or no", "write true or false")
        return text.lower() in ("true", "yes", "1")
    for kind in (float,) if isinstance(like, float) else (int, float):
        with suppress(ValueError):
            return kind(text)
    if isinstance(like, int | float):
        raise ConfigError(f"{part!r} is not a number", f"for example {part.partition('=')[0]}={like}")
    return text


#: Anomaly detectors; filled by :func:`pfungst.anomaly.register`.
DETECTORS = Registry("detector", "pfungst.anomaly")
#: Steps of conditions beside the resizers; filled by :func:`pfungst.conditions.register`.
CONDITIONS = Registry("condition", "pfungst.conditions")
#: Composites of rules; filled by :func:`pfungst.relevance.register`.
COMPOSITES = Registry("composite", "pfungst.relevance")
