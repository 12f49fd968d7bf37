"""Open types: implementations by name, instance and import path, there and back, and errors that say where."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmd4rec.config.open_types import import_also_from, imports_refused, open_type, open_type_in, path_of
from llmd4rec.errors import ConfigError, RunError

HERE = __name__


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: str = "red"


class Circle(Shape):
    radius: float = Field(1.0, gt=0)


class Square(Shape):
    side: int = 2


class Hidden(Shape):
    name: str = "own"


class Metric:
    def value(self) -> float:
        return 0.0


@dataclass(frozen=True)
class AtK(Metric):
    k: int = 10


class Plain(Metric):
    pass


SHAPES = open_type("shape", Shape, {"circle": f"{HERE}:Circle", "square": f"{HERE}:Square"}, default="circle")
METRICS = open_type("metric", Metric, {"at": f"{HERE}:AtK"})


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    shape: Annotated[Shape, SHAPES] = Circle()
    metrics: tuple[Annotated[Metric, METRICS], ...] = ()


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that nobody has imported; it leaves a file behind when it is."""
    name = f"outside_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        f"from pathlib import Path\nfrom {HERE} import Shape\nPath(__file__).with_suffix('.ran').touch()\n\n\n"
        "class Star(Shape):\n    points: int = 5\n\n\nclass Shade:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def problem(**values: Any) -> tuple[str, str]:
    """Where it is wrong, and what is said."""
    with pytest.raises(ValidationError) as caught:
        Settings(**values)
    (error,) = caught.value.errors()
    return ".".join(map(str, error["loc"])), error["msg"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("square", Square()),
        ({"name": "square", "side": 3}, Square(side=3)),
        ({"radius": 2}, Circle(radius=2)),
        ({}, Circle()),
        ({"name": None}, Circle()),
        (f"{HERE}:Square", Square()),
        ({"name": f"{HERE}:Square", "colour": "blue"}, Square(colour="blue")),
        (Square(side=7), Square(side=7)),
    ],
)
def test_all_ways_to_give_one(given: Any, meant: Shape) -> None:
    assert Settings(shape=given).shape == meant


def test_written_out_by_name_first_and_read_back() -> None:
    settings = Settings(shape=Square(side=3), metrics=(AtK(5), Plain()))
    written = settings.model_dump(mode="json")
    assert list(written["shape"].items()) == [("name", "square"), ("colour", "red"), ("side", 3)]
    assert written["metrics"] == [{"name": "at", "k": 5}, {"name": f"{HERE}:Plain"}]
    again = Settings.model_validate(written)
    assert again.shape == settings.shape
    assert again.metrics[0] == AtK(5)
    assert isinstance(again.metrics[1], Plain)


def test_a_class_of_another_module(outside: str, tmp_path: Path) -> None:
    settings = Settings.model_validate({"shape": {"name": f"{outside}:Star", "points": 6}})
    assert (tmp_path / f"{outside}.ran").exists()
    assert settings.model_dump(mode="json")["shape"] == {"name": f"{outside}:Star", "colour": "red", "points": 6}


@pytest.mark.parametrize(
    ("given", "where", "said"),
    [
        ("circel", "shape", "no shape has this name; did you mean 'circle'? (known: circle, square; one of your own"),
        ({"name": "lines"}, "shape.name", "no shape has this name"),
        (5, "shape", "must be the name of a shape, a group of its settings, or an instance"),
        ({"name": 5}, "shape.name", "should be a name"),
        ("no_such_module.inside:Thing", "shape", "there is no module 'no_such_module'"),
        (f"{HERE}:Squar", "shape", f"module '{HERE}' has no 'Squar'; did you mean {HERE}:Square?"),
        (f"{HERE}:AtK", "shape", f"it is no shape; derive the class from {HERE}.Shape"),
        (f"{HERE}:Hidden", "shape", "it has a setting `name`"),
        ({"side": 3}, "shape.side", "Extra inputs are not permitted"),
        ({"name": "square", "side": "x"}, "shape.side", "valid integer"),
        ({"radius": 0}, "shape.radius", "greater than 0"),
    ],
)
def test_what_is_wrong_and_where(given: Any, where: str, said: str) -> None:
    at, message = problem(shape=given)
    assert at == where
    assert said in message


def test_in_a_list_and_without_a_default() -> None:
    assert problem(metrics=["at", {"k": 3}])[0] == "metrics.1"
    assert problem(metrics=["at", {"name": "at", "kk": 3}]) == ("metrics.1.kk", "Extra inputs are not permitted")
    assert problem(metrics=[{"name": f"{HERE}:Plain", "k": 3}])[0] == "metrics.0.k"
    assert problem(metrics=[{"name": "at", "k": "x"}])[0] == "metrics.0.k"


def test_a_module_that_fails_is_told_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails_on_import.py").write_text("import no_such_thing_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"importing fails_on_import failed: ModuleNotFoundError: .*no_such_thing"):
        Settings(shape="fails_on_import:Star")


def test_settings_of_others_import_nothing(outside: str, tmp_path: Path) -> None:
    with imports_refused("runs/theirs"):
        with pytest.raises(RunError, match=f"runs/theirs names the shape {outside}:Star") as caught:
            Settings(shape=f"{outside}:Star")
        assert "--trust-code" in caught.value.remedy
        assert Settings.model_validate({"shape": "square"}).shape == Square()
        assert Settings.model_validate({"shape": f"{HERE}:Circle"}).shape == Circle()
    assert not (tmp_path / f"{outside}.ran").exists()
    Settings.model_validate({"shape": f"{outside}:Star"})
    with imports_refused("runs/theirs"):
        assert type(Settings.model_validate({"shape": f"{outside}:Star"}).shape).__name__ == "Star"
        with pytest.raises(ValidationError, match="it is no shape"):
            Settings(shape=f"{outside}:Shade")


def test_settings_of_others_ask_no_module_for_what_it_makes_on_demand() -> None:
    with imports_refused("runs/theirs"), pytest.raises(ValidationError, match="has no 'SASRec'"):
        Settings(shape="llmd4rec:SASRec")


@pytest.fixture
def path_as_before() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.mark.usefixtures("path_as_before")
def test_another_folder_is_looked_in_last(tmp_path: Path) -> None:
    (tmp_path / "lies_elsewhere.py").write_text(f"from {HERE} import Shape\n\n\nclass Star(Shape):\n    pass\n")
    before = list(sys.path)
    import_also_from(tmp_path)
    Settings.model_validate({"shape": "square"})
    assert sys.path == before, "only where a module is named"
    assert type(Settings.model_validate({"shape": "lies_elsewhere:Star"}).shape).__name__ == "Star"
    assert sys.path[: len(before)] == before
    assert str(tmp_path) in sys.path[len(before) :]


def test_a_class_of_a_function_is_found_again_in_its_process() -> None:
    class Local(Shape):
        size: int = 1

    written = Settings(shape=Local(size=4)).model_dump(mode="json")
    again = Settings.model_validate(written)
    assert isinstance(again.shape, Local)
    assert again.shape.size == 4
    at, message = problem(shape={"name": f"{HERE}:nowhere.<locals>.Local"})
    assert at == "shape.name"
    assert "defined in a function" in message


def test_a_class_that_only_adds_methods_is_written_as_the_other() -> None:
    class Drawn(Square):
        written_as: ClassVar[type[Shape]] = Square

    assert path_of(Drawn) == f"{HERE}:Square"


def test_the_open_type_of_a_field_is_found() -> None:
    assert open_type_in(Settings.model_fields["shape"]) is SHAPES
    assert open_type_in(Settings.model_fields["metrics"]) is METRICS
    assert open_type_in(int | None) is None
