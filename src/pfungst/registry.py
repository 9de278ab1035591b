"""Classes by name, found by their decorator and imported when they are asked for. Imports nothing heavy."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from typing import Any

from pfungst.errors import ConfigError
from pfungst.suggest import suggest

_DECORATED = re.compile(r'^@register\("([^"]+)"', re.MULTILINE)


class Registry:
    """The classes of one kind, by name.

    A class of `package` is known by the line ``@register("name")`` above it, without an import, so that
    ``--help`` can list it; a class from anywhere else is known once its module has been imported.

    Args:
        kind: what the classes are, for messages.
        package: whose modules, one level deep, are read for the decorator.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._classes: dict[str, type[Any]] = {}

    def add(self, name: str, cls: type[Any]) -> None:
        """Make `cls` known as `name`.

        Raises:
            ConfigError: the name is taken, or cannot stand in a specification.
        """
        taken = self._classes.get(name, cls)
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(f"the name {name!r} is taken by {taken.__qualname__}", "choose another name")
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"{name!r} is no name for a {self.kind}", "use letters, digits, - and _")
        self._classes[name] = cls

    def remove(self, name: str) -> None:
        """Forget a class that was added from outside of the package."""
        self._classes.pop(name, None)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._modules(), *self._classes})

    def get(self, name: str) -> type[Any]:
        """The class of that name.

        Raises:
            ConfigError: there is none; a near name is suggested.
        """
        if name not in self._classes and (module := self._modules().get(name)):
            importlib.import_module(f"{self.package}.{module}")
        if name not in self._classes:
            raise ConfigError(f"unknown {self.kind} {name!r}", suggest(name, self.names()))
        return self._classes[name]

    def name_of(self, cls: type[Any]) -> str | None:
        """The name of exactly this class, None where it has none of its own."""
        return next((name for name, known in self._classes.items() if known is cls), None)

    def _modules(self) -> dict[str, str]:
        """Module by name, read from the sources."""
        spec = importlib.util.find_spec(self.package)
        found: dict[str, str] = {}
        for module in pkgutil.iter_modules(spec.submodule_search_locations if spec else None):
            place = module.module_finder.find_spec(module.name, None)
            loader: Any = place.loader if place else None
            source = loader.get_source(module.name) if hasattr(loader, "get_source") else None
            found |= dict.fromkeys(_DECORATED.findall(source or ""), module.name)
        return found


#: Anomaly detectors; filled by :func:`pfungst.anomaly.register`.
DETECTORS = Registry("detector", "pfungst.anomaly")
