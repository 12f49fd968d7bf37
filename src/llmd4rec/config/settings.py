"""Settings of a run: one YAML, checked; every default written out; errors that name the nearest known key."""

# Not by pydantic-settings: its YAML source takes the last of a key given twice, refuses a group left empty, names no
# nearest key for an unknown one, and has no `--set`. All that is below would stay, for three lines that open the file.

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from llmd4rec.config.open_types import OpenType, fields_of, open_type_in
from llmd4rec.errors import ConfigError
from llmd4rec.io.files import atomic_file

M = TypeVar("M", bound=BaseModel)

#: Ten times as quick where PyYAML was built with libyaml, which nearly everywhere it was.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: How a wrong value is quoted: a file of a few lines can hold, by its aliases, one that is gigabytes long.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 120, 120


def load_settings(
    kind: type[M], path: Path | None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> M:
    """Reads a YAML file of settings and applies `key.key=value` overrides.

    Args:
        kind: the settings' model.
        path: the file; None for all defaults. An empty file or `{}` is valid.
        overrides: as given to `--set`; values are YAML, so `[5, 10]`, `null` and `true` mean what they say.
        base: what holds where neither says otherwise. Groups are merged; a single value, a list, a null that means
            something, or a group with another `name` takes the place of what `base` has there.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    values: Any = {}
    if path is not None:
        try:
            values = _read_yaml(Path(path).read_text(encoding="utf-8"), Path(path).name)
        except FileNotFoundError as error:
            raise ConfigError(f"{path} does not exist", "Give a YAML file; one with only {} means defaults.") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as YAML: {error}", "Correct the file.") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not settings", "Write `key: value` lines.")
    values = _merged(base or {}, _without_empty(kind, values))
    for override in overrides:
        _apply(values, override)
        values = _without_empty(kind, values)  # a name becomes a group, whose settings the next may change
    return check(kind, _without_empty(kind, values), str(path) if path is not None else "the settings")


def _read_yaml(text: str, where: str) -> Any:
    """What YAML, which JSON is too, says.

    Raises:
        ConfigError: a key is given twice, of which YAML's own readers take the last.
        yaml.YAMLError: it is no YAML.
    """
    loader = _LOADER(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _refuse_repeated(root, where, "", set())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _refuse_repeated(node: yaml.Node, where: str, prefix: str, looked_at: set[int]) -> None:
    if id(node) in looked_at:  # an alias, of which a few lines can make billions
        return
    looked_at.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for place, each in enumerate(node.value):
            _refuse_repeated(each, where, f"{prefix}{place}.", looked_at)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                at = f"line {lines[name]} and line {line}" if line != lines[name] else f"line {line}"
                raise ConfigError(
                    f"{prefix + key.value!r} stands twice in {where} ({at})",
                    "Put what belongs to it under one of them, and remove the other.",
                )
            lines[name] = line
        _refuse_repeated(value, where, f"{prefix}{getattr(key, 'value', '')}.", looked_at)


def _without_empty(kind: Any, values: Any) -> Any:
    """The values without the groups of settings that were left empty, which then are as they are by default.

    What an open type is given as, a name alone, becomes a group, so that single settings can be added to it.
    """
    if not isinstance(values, dict) or not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return values
    kept = {}
    for name, value in values.items():
        info = kind.model_fields.get(name)
        group = None if info is None else _group_of(info)
        if info is None or group is None or _is_list(info.annotation):  # a list of groups is none of its groups
            kept[name] = value
            continue
        if value is None and type(None) not in get_args(info.annotation):
            continue
        if isinstance(group, OpenType):
            cls = group.class_of(value)
            value = {"name": value} if isinstance(value, str) and cls is not None else value
            group = cls
        kept[name] = _without_empty(group, value)
    return kept


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    if "name" in base and over.get("name", base["name"]) != base["name"]:  # a group of another kind
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def check(kind: type[M], values: dict[str, Any], where: str) -> M:
    """Builds `kind` from plain values.

    Keys of earlier versions are refused with what they are called now, by the table `renamed` of `kind`, a
    `ClassVar[Mapping[str, str]]`: old dotted key, where `*` stands for any one part → the new key, whose `*` are filled
    in turn, or, where no key takes its place, a sentence. An entry for a group holds for all in it; of several that
    hold the longest counts.

    Raises:
        ConfigError: with every wrong key and value, and the nearest known key.
    """
    old = _old_keys(getattr(kind, "renamed", {}), values)
    cause: ValidationError | None = None
    lines = list(old.values())
    try:
        settings = kind.model_validate(values)
    except ValidationError as error:
        cause = error
        lines += _explain(kind, values, error.errors(), set(old))
    if not lines and cause is None:
        return settings
    remedy = "Correct it; `llmd4rec train --show-settings` prints every setting with its default."
    raise ConfigError(f"{where}: " + "; ".join(lines), remedy) from cause


def _old_keys(renamed: Mapping[str, str], values: dict[str, Any]) -> dict[tuple[str, ...], str]:
    """Each old key among the values, and what to say of it."""
    found: dict[tuple[str, ...], str] = {}
    for pattern in sorted(renamed, key=lambda key: (-key.count("."), key.count("*"))):
        for path, value in _matches(pattern.split("."), values):
            inside = tuple((*path, str(key)) for key in value) if isinstance(value, dict) else ()
            for each in inside or (path,):
                if not any(longer[: len(each)] == each for longer in found):
                    found[each] = _say_new(pattern, renamed[pattern], each)
    return dict(sorted(found.items()))


def _matches(pattern: Sequence[str], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not pattern:
        yield (), value
        return
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        if pattern[0] in ("*", str(key)):
            for path, end in _matches(pattern[1:], each):
                yield (str(key), *path), end


def _say_new(pattern: str, new: str, path: tuple[str, ...]) -> str:
    old = pattern.split(".")
    if " " in new:
        return f"setting {'.'.join(path)!r} no longer exists: {new}"
    starred = iter([part for part, sign in zip(path, old, strict=False) if sign == "*"])
    parts = [next(starred) if part == "*" else part for part in new.split(".")]
    return f"setting {'.'.join(path)!r} is now {'.'.join([*parts, *path[len(old) :]])!r}"


def dump_settings(settings: BaseModel) -> str:
    """All settings, defaults included, as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def save_settings(settings: BaseModel, path: Path) -> None:
    """Writes :func:`dump_settings` atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(dump_settings(settings), encoding="utf-8")


def describe(kind: type[Any], prefix: str = "") -> Iterable[tuple[str, Any, str]]:
    """Every setting as (dotted key, default, what it is); `key.*.name` are those of each group in a list.

    Of an open type those of the default implementation come first, then what the others have that it has not, or with
    another default, each with the name of its implementation.
    """
    for name, info in kind.model_fields.items() if issubclass(kind, BaseModel) else ():
        group, default = _group_of(info), info.get_default(call_default_factory=True)
        key, said = f"{prefix}{name}", info.description or ""
        if isinstance(group, OpenType):
            yield from _describe_open(group, key, default, said, listed=_is_list(info.annotation))
        elif group is None or not issubclass(group, BaseModel):
            yield key, default, said
        elif isinstance(default, tuple):
            yield key, [each.model_dump(mode="json", exclude_defaults=True) for each in default], said
            yield from describe(group, f"{key}.*.")
        else:
            yield from describe(group, f"{key}.")


def _describe_open(
    open_type: OpenType, key: str, default: Any, said: str, *, listed: bool
) -> Iterable[tuple[str, Any, str]]:
    own: list[tuple[str, Any, str]] = []
    written: Any = None if listed or default is None else open_type.dump(default)
    if isinstance(written, str):  # as it is given in one word, such as `ndcg@10`
        yield key, written, said
        return
    if listed:
        named = isinstance(default, tuple | list)
        yield key, [open_type.dump(each) for each in default] if named else default, said
        inner, first = f"{key}.*.", None
    elif isinstance(default, open_type.base) and isinstance(short := open_type.dump(default), str):
        yield key, short, said  # one that is written as a text has no group of settings
        return
    else:
        first = open_type.class_of(default)
        yield f"{key}.name", None if first is None else open_type.name_of(first), said
        inner = f"{key}."
        own = [] if first is None else list(describe(first, inner))
        yield from own
    seen = {(setting, repr(value)) for setting, value, _ in own}
    for name in open_type.known:
        other = open_type.find(name)
        for setting, value, words in describe(other, inner) if other is not first else ():
            if (setting, repr(value)) not in seen:
                yield setting, value, f"({name}) {words}"


def differences(a: BaseModel, b: BaseModel) -> list[str]:
    """The dotted keys in which two settings of one kind differ, with both values."""
    return list(_differences(a.model_dump(mode="json"), b.model_dump(mode="json"), ""))


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str) -> Iterator[str]:
    for key in dict.fromkeys([*a, *b]):
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:  # a whole group that is there in one of them only is one line
            shown = [f"{{{', '.join(value)}}}" if isinstance(value, dict) else repr(value) for value in (old, new)]
            yield f"{prefix}{key}: {shown[0]} → {shown[1]}"


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r} is not KEY=VALUE", "For example: --set seed=7")
    try:
        value = _read_yaml(text, f"--set {key}")
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--set {key}: {text!r} is not a YAML value", "Quote it for the shell.") from error
    *parents, last = key.strip().split(".")
    for parent in parents:
        # Not there, a block that was left empty, or a group that is as it is by default.
        group = {} if values.get(parent) in (None, "auto") else values[parent]
        if not isinstance(group, dict):
            raise ConfigError(f"--set {key}: {parent!r} is no group of settings", "Check the key.")
        values[parent] = values = dict(group)  # an alias of YAML may name the same one elsewhere
    values[last] = value


def _explain(
    kind: type[BaseModel], values: Any, problems: Iterable[Any], old: Iterable[tuple[str, ...]] = ()
) -> list[str]:
    """One line for each wrong setting that is not an `old` one; of several kinds, all that it failed to be."""
    reasons: dict[str, list[str]] = {}
    for problem in problems:
        path, known, nullable = _locate(kind, values, problem["loc"])
        key, given = ".".join(path), problem["input"]
        if problem["type"] == "too_short" and problem["ctx"]["actual_length"] < len(given):
            continue  # some members are wrong and left out, which is said of each
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            if any(each[: len(path)] == tuple(path) or tuple(path[: len(each)]) == each for each in old):
                continue
            reasons[_unknown(kind, path, known)] = []
        elif problem["type"] == "value_error":  # of a whole group of settings: what was given is not one value
            reasons[f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])] = []
        else:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            said = reasons.setdefault(f"{key} = {_SHORT.repr(given)}: ", [])
            said[:] = [*(each for each in said if each != "null"), message, *(["null"] if nullable else [])]
    return [start + ", or ".join(dict.fromkeys(messages)) for start, messages in reasons.items()]


def _locate(kind: type[BaseModel], values: Any, location: Sequence[str | int]) -> tuple[list[str], list[str], bool]:
    """The names on the way to a setting, without pydantic's names for the types of a union; the settings known beside
    it; whether it may be null."""
    path: list[str] = []
    group: Any = kind
    nullable = False
    for part in location:
        if isinstance(group, OpenType) and not isinstance(part, int):
            group = group.class_of(values)
        known = fields_of(group) if isinstance(group, type) else {}
        path.append(str(part))
        if isinstance(values, Mapping):
            values = values.get(part)
        elif isinstance(part, int) and isinstance(values, Sequence) and part < len(values):
            values = values[part]
        else:  # an object that was given whole
            values = getattr(values, str(part), None)
        if isinstance(part, int):  # one of a list of groups
            nullable = False
            continue
        nullable = part in known and type(None) in get_args(_annotation(known[part]))
        if part not in known or (group := _group_of(known[part])) is None:
            return path, list(known), nullable
    return path, [], nullable


def _annotation(field: FieldInfo | Any) -> Any:
    return field.annotation if isinstance(field, FieldInfo) else field


def _group_of(field: FieldInfo | Any) -> Any:
    """The open type, settings model or dataclass in a field or an annotation, if there is one."""
    if (found := open_type_in(field)) is not None:
        return found
    annotation = _annotation(field)
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        return annotation
    return next((found for each in get_args(annotation) if (found := _group_of(each)) is not None), None)


def _is_list(annotation: Any) -> bool:
    """Whether a setting takes several values."""
    return get_origin(annotation) in (tuple, list) or any(map(_is_list, get_args(annotation)))


def _unknown(kind: type[BaseModel], path: list[str], known: list[str]) -> str:
    key = ".".join(path)
    nearest = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
    elsewhere = any(name.split(".")[-1] == path[-1] for name, _, _ in describe(kind))
    sure = difflib.get_close_matches(path[-1], nearest, n=1, cutoff=0.75)
    if nearest and (sure or not elsewhere):  # a name that is right in another group is no misspelling
        return f"unknown setting {key!r}; did you mean {'.'.join([*path[:-1], nearest[0]])!r}?"
    everywhere = [name for name, _, _ in describe(kind)]
    if key in everywhere:  # of another kind than the one that was chosen
        kinds = [said[1 : said.index(")")] for name, _, said in describe(kind) if name == key and said.startswith("(")]
        return f"what is chosen here has no setting {key!r}" + (f"; {', '.join(kinds)} has" if kinds else "")
    same_end = [name for name in everywhere if name.split(".")[-1] == path[-1]]
    hint = same_end or difflib.get_close_matches(key, everywhere, n=1, cutoff=0.3) or known
    return f"unknown setting {key!r}; the nearest known is {hint[0]!r}" if hint else f"unknown setting {key!r}"
