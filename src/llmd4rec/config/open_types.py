"""Open types: settings whose implementations others can add to, by name, by instance or by import path.

    SequentialModel = Annotated[
        ModelSettings, open_type("model", ModelSettings, {"sasrec": "llmd4rec...sasrec:SASRec"}, default="sasrec")
    ]

    model: sasrec                                           a known name
    model: my_package.models:MyModel                        any class derived from the base
    model: {name: my_package.models:MyModel, dim: 32}       with its own settings; without `name`, of the default
    Distillation(model=MyModel(dim=32))                     in Python

An implementation is a pydantic model, a dataclass, or a class without constructor arguments. Its fields are its
settings. Written out, all of them stand behind `name`, so that a run's config.yaml gives the same object again.

**Whose code is imported.** Settings that the user gives may name any module. Settings read from elsewhere, such as a
run folder, are validated inside :func:`imports_refused`: there a name may only be a known one or that of a class whose
module this process has imported already.

A class of a notebook or script is written as `__main__:Name`, which the same notebook or script can read again. A class
defined in a function is found by its path only as long as the process lives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_type_hints
from weakref import WeakValueDictionary

from pydantic import BaseModel, GetCoreSchemaHandler, SerializationInfo, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from llmd4rec.errors import ConfigError, RunError

#: Whose settings are being read that may import nothing; empty: the user's own.
_OTHERS: ContextVar[str] = ContextVar("settings_of_others", default="")
#: Classes that were defined in a function, by path.
_LOCAL: WeakValueDictionary[str, type[Any]] = WeakValueDictionary()
#: Where else than on Python's path modules are looked for.
_FOLDERS: list[str] = []


@contextlib.contextmanager
def imports_refused(where: str) -> Iterator[None]:
    """Settings validated inside are not the user's own and import no module.

    Args:
        where: what they were read from, for the error.
    """
    token = _OTHERS.set(where)
    try:
        yield
    finally:
        _OTHERS.reset(token)


def import_also_from(folder: Path) -> None:
    """Modules that settings name are looked for in `folder` too, behind Python's own path."""
    if str(folder) not in _FOLDERS:
        _FOLDERS.append(str(folder))


def path_of(cls: type[Any]) -> str:
    """`package.module:Name` of a class; a class that only adds methods says in `written_as` which one it stands for."""
    cls = cls.__dict__.get("written_as", cls)
    path = f"{cls.__module__}:{cls.__qualname__}"
    if "<locals>" in path:
        _LOCAL[path] = cls
    return path


def require_importable(settings: BaseModel, *, by_workers: bool = False) -> None:
    """Refuses classes whose path another process could not import.

    Args:
        settings: with open types anywhere in them.
        by_workers: processes that this one starts must find them, for which `__main__` is another module.

    Raises:
        ConfigError: there is such a class.
    """
    for text in _texts_in(settings.model_dump(mode="json")):
        if ".<locals>." in text:
            raise ConfigError(
                f"{text} is defined in a function, so a run folder could not name it",
                "Define the class at the top of a module, or train without a folder.",
            )
        if by_workers and text.startswith("__main__:"):
            raise ConfigError(
                f"{text} is defined in a script or notebook, where processes of their own cannot find it",
                "Put the class into a module, or train with one job.",
            )


def _texts_in(values: Any) -> Iterator[str]:
    """All texts among settings: one of them may be an import path."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _texts_in(value)


def fields_of(cls: type[Any]) -> dict[str, FieldInfo | Any]:
    """Name → field or annotation of the settings of an implementation."""
    if issubclass(cls, BaseModel):
        return dict(cls.model_fields)
    if dataclasses.is_dataclass(cls):
        hints = get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    return {}


@functools.lru_cache(maxsize=256)
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    """How pydantic reads and writes a dataclass: making it takes milliseconds, and a run asks hundreds of times."""
    return TypeAdapter(cls)


@dataclass(frozen=True)
class OpenType:
    """A kind of setting with implementations that others can add to; pydantic reads it as metadata of a type.

    Attributes:
        what: one of it in words, such as `model` or `item feature`.
        base: what implementations derive from.
        known: name → `package.module:Name` of those that need no import path.
        default: the name of the one whose settings a group without `name` has; None: `name` must be given.
    """

    what: str
    base: type[Any]
    known: Mapping[str, str]
    default: str | None = None

    def find(self, name: str) -> type[Any]:
        """The class of a name.

        Raises:
            ValueError: there is no such class, or it is none of these.
            ConfigError: its module cannot be imported.
            RunError: it would have to be imported for somebody else's settings.
        """
        path = self.known.get(name, name)
        module_name, colon, qualname = path.partition(":")
        if not colon or not module_name or not qualname:
            nearest = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            known = ", ".join(self.known) or "none"
            raise ValueError(
                f"no {self.what} has this name{hint} (known: {known}; one of your own: package.module:Name)"
            )
        cls = _LOCAL.get(path) if "<locals>" in qualname else self._look_up(name, module_name, qualname)
        if cls is None:
            raise ValueError(
                "it was defined in a function of another process, or is gone; define it at the top of a module"
            )
        if not isinstance(cls, type) or not issubclass(cls, self.base):
            raise ValueError(f"it is no {self.what}; derive the class from {self.base.__module__}.{self.base.__name__}")
        if missing := sorted(getattr(cls, "__abstractmethods__", ())):
            raise ValueError(f"it is no {self.what} yet; define {', '.join(missing)}")
        if "name" in fields_of(cls):
            raise ValueError("it has a setting `name`, which would hide which class it is; call the setting otherwise")
        return cls

    def _look_up(self, name: str, module_name: str, qualname: str) -> Any:
        module = self._module(name, module_name)
        found: Any = module
        for part in qualname.split("."):
            # Of settings that are not the user's own even a module's `__getattr__`, which may import, is not asked.
            get = inspect.getattr_static if _OTHERS.get() and name not in self.known else getattr
            try:
                found = get(found, part)
            except AttributeError as error:
                there = [each for each, value in vars(module).items() if isinstance(value, type)]
                nearest = difflib.get_close_matches(part, there, n=1, cutoff=0.5)
                hint = f"; did you mean {module_name}:{nearest[0]}?" if nearest else ""
                if module_name == "__main__":
                    hint = "; it was defined in another notebook or script; put it into a module"
                raise ValueError(f"module {module_name!r} has no {qualname!r}{hint}") from error
        return found

    def _module(self, name: str, module_name: str) -> ModuleType:
        if name in self.known:
            return importlib.import_module(module_name)
        if module_name in sys.modules:
            return sys.modules[module_name]
        if where := _OTHERS.get():
            raise RunError(
                f"{where} names the {self.what} {name}, whose code this process has not imported",
                "If you trust whoever made it, and the code that this name finds on your machine, give --trust-code "
                "(in Python: Run.open(folder, trust_code=True)), or import the module yourself first.",
            )
        sys.path += [folder for folder in _FOLDERS if folder not in sys.path]
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise ConfigError(*_failed(name, module_name, error)) from error
            raise ValueError(
                f"there is no module {error.name!r}; install it, or name its folder in PYTHONPATH (the command line "
                "looks in the current directory too)"
            ) from error
        except Exception as error:
            raise ConfigError(*_failed(name, module_name, error)) from error

    def name_of(self, cls: type[Any]) -> str:
        """What a class is written as: its known name, or its import path."""
        path = path_of(cls)
        return next((name for name, known in self.known.items() if known == path), path)

    def class_of(self, value: Any) -> type[Any] | None:
        """The class that a value of these settings, as it is given, is one of; None where it cannot be told."""
        if isinstance(value, self.base):
            return type(value)
        name = value.get("name") if isinstance(value, Mapping) else value
        name = self.default if name is None else name
        try:
            return self.find(name) if isinstance(name, str) else None
        except ValueError:
            return None

    def validate(self, value: Any) -> Any:
        """An implementation, from an instance, a name, or a group of its settings with its name.

        Raises:
            ValidationError: it is none; the location is that of the wrong setting.
        """
        if isinstance(value, self.base):
            path_of(type(value))  # a class of a function is remembered as long as it is there
            return value
        at: tuple[str, ...] = ("name",) if isinstance(value, Mapping) and "name" in value else ()
        values = {"name": value} if isinstance(value, str) else value
        if not isinstance(values, Mapping):
            raise self._wrong(f"must be the name of a {self.what}, a group of its settings, or an instance", (), value)
        rest = {key: each for key, each in values.items() if key != "name"}
        name = values.get("name")
        name = self.default if name is None else name
        if name is None:
            raise self._wrong(f"must say in `name` which {self.what} it is: {', '.join(self.known)}", (), value)
        if not isinstance(name, str):
            raise self._wrong("input should be a name", at, name)
        try:
            cls = self.find(name)
        except ValueError as error:
            raise self._wrong(str(error), at, name) from error
        return self._build(cls, rest)

    def _build(self, cls: type[Any], values: dict[str, Any]) -> Any:
        known = fields_of(cls)
        open_ended = issubclass(cls, BaseModel) and cls.model_config.get("extra") in ("allow", "forbid")
        if unknown := [] if open_ended else [key for key in values if key not in known]:
            wrong = [InitErrorDetails(type="extra_forbidden", loc=(key,), input=values[key]) for key in unknown]
            raise ValidationError.from_exception_data(self.what, wrong)
        if issubclass(cls, BaseModel):
            return cls.model_validate(values)
        return _adapter(cls).validate_python(values) if dataclasses.is_dataclass(cls) else cls()

    def dump(self, value: Any, mode: Literal["json", "python"] = "json") -> Any:
        """Name and settings of an implementation, as plain values: a group, or a word where there is a short form."""
        if isinstance(value, BaseModel):
            settings: Any = value.model_dump(mode=mode)
        elif dataclasses.is_dataclass(value):
            cls: Any = type(value)
            settings = _adapter(cls).dump_python(value, mode=mode)
        else:
            settings = {}
        return {"name": self.name_of(type(value)), **settings}

    def _wrong(self, message: str, at: tuple[str, ...], given: Any) -> ValidationError:
        problem = PydanticCustomError("open_type", "{message}", {"message": message})
        return ValidationError.from_exception_data(self.what, [InitErrorDetails(type=problem, loc=at, input=given)])

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def serialize(value: Any, info: SerializationInfo) -> Any:
            return self.dump(value, "json" if info.mode == "json" else "python")

        return core_schema.no_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(serialize, info_arg=True),
        )


def open_type(what: str, base: type[Any], known: Mapping[str, str], default: str | None = None) -> OpenType:
    """Makes a type an open one: `Annotated[Base, open_type("model", Base, {...})]`; see :class:`OpenType`."""
    return OpenType(what, base, known, default)


def open_type_in(field: FieldInfo | Any) -> OpenType | None:
    """The open type in a field or an annotation, if there is one: its own, or that of the parts of a list."""
    parts = (field.annotation, *field.metadata) if isinstance(field, FieldInfo) else (field,)
    for part in parts:
        if isinstance(part, OpenType):
            return part
        if (found := next(filter(None, map(open_type_in, get_args(part))), None)) is not None:
            return found
    return None


def _failed(name: str, module_name: str, error: BaseException) -> tuple[str, str]:
    return (
        f"{name}: importing {module_name} failed: {type(error).__name__}: {error}",
        "Correct the module; `python -c 'import " + module_name + "'` shows where.",
    )
