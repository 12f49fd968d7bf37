"""Damages exports in every way, makes their checksums right again, and reports whatever is not answered properly.

An export is answered properly if it is refused by an `LLMD4RecError` that names a file of it, or loaded, and then gives
answers that are neither empty nor NaN. Any other exception, a crash, an endless computation or too much memory is a
finding, unless the service's own trial (`llmd4rec.server.trial`), which has a process of its own for that, refuses the
export by name. An input follows from its number alone:

    python tests/serving/fuzz_exports.py exports/first exports/with-memory --inputs 10000
    python tests/serving/fuzz_exports.py exports/first exports/with-memory --only 4711     # one again, in this process
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
from onnx import TensorProto, helper, numpy_helper

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from data.fuzz_readers import mutated, series

from llmd4rec import Recommender
from llmd4rec.errors import LLMD4RecError
from llmd4rec.server.trial import Trial, ask_once, limited

Files = dict[str, bytes]
#: Seconds of processor time in all and for one file, and bytes of memory beside what is used at the start.
SLOW, SECONDS, MEMORY = 10, 1, 3 << 30
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**300, 0.5, 1e308, -1e308, 1e-320),
    *(float("nan"), float("inf"), "", "x", "\x00", "\ud800", "a" * 70_000, "../../etc/passwd", "/etc/passwd", [], {}),
    *([[]] * 50, {"a": {"a": {}}}, [None], [-1], [10**9], [True] * 10, {"model": "x"}, "NaN", "encoder.onnx"),
)


# ---- damage -----------------------------------------------------------------------------------------------------
def bytes_damaged(rng: random.Random, files: Files) -> None:
    name = rng.choice(sorted(files))
    files[name] = mutated(rng, files[name], rng.randint(1, 4))


def bytes_of_a_head_damaged(rng: random.Random, files: Files) -> None:
    """Where formats say what they are: their first bytes, and of Parquet the last."""
    name = rng.choice(sorted(files))
    content = bytearray(files[name])
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(min(len(content), 128)) if content else 0
        if name.endswith(".parquet") and rng.random() < 0.7:
            at = len(content) - 1 - rng.randrange(min(len(content), 400))
        if content:
            content[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, content[at] ^ (1 << rng.randrange(8))))
    files[name] = bytes(content)


def replaced(rng: random.Random, files: Files) -> None:
    name, other = rng.choice(sorted(files)), rng.choice(sorted(files))
    files[name] = rng.choice((files[other], b"", b"\x00" * 1000, rng.randbytes(3000), b"[" * 100_000, b"{}"))


def removed(rng: random.Random, files: Files) -> None:
    del files[rng.choice(sorted(set(files) - {"export.json"}))]


def json_changed(rng: random.Random, files: Files) -> None:
    """A value anywhere in a JSON file is another one, is not there, or has another name."""
    name = rng.choice([*[name for name in files if name.endswith(".json")], "export.json", "export.json"])
    value = json.loads(files[name])
    for _ in range(rng.randint(1, 3)):
        inner = value
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            keys = [key for key in keys if key != "files" or rng.random() < 0.1]
            if not keys:
                break
            key = rng.choice(keys[:2000])
            if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.7:
                inner = inner[key]
                continue
            kind = rng.random()
            if kind < 0.7:
                inner[key] = rng.choice(ODD)
            elif kind < 0.85:
                del inner[key]
            elif isinstance(inner, dict):
                inner[rng.choice(("x", "model", "memory", "weights", "texts", "new_items", "reads"))] = inner[key]
            break
    files[name] = json.dumps(value).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        files[name] = files[name].replace(b": ", b": " + rng.choice((b"9" * 5000, b"-", b"1e999, ", b"[")), 1)


def npy(shape: str, kind: str, data: bytes) -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    head += " " * (63 - (len(head) + 10) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + data


def array_changed(rng: random.Random, files: Files) -> None:
    """An array of other numbers, of another type, or of another shape than it says."""
    name = rng.choice([name for name in files if name.endswith(".npy")])
    array = np.load(io.BytesIO(files[name]))
    kind = rng.randrange(4)
    if kind == 0:
        shapes = ("(1000000000000, 64)", "(4611686018427387904, 64)", "(-1,)", "()", "(0,)", "(2, 2, 2)")
        shape = rng.choice((*shapes, "(" * 150 + "1," + ")" * 150, f"({array.size},)", str(array.shape)))
        types = ("<f4", "<f8", "<i8", ">f4", "|O", "|S9", "<i4", "|i1", "V8", "[('a', '<f4')]")
        files[name] = npy(shape, rng.choice((array.dtype.str, *types)), array.tobytes()[: rng.choice((None, 0, 7))])
        return
    if kind == 1 and array.size:
        flat = array.reshape(-1)
        for _ in range(rng.choice((1, 1, 1000))):
            odd = (0, -1, 1, np.nan, np.inf, 3e38, 1e13) if array.dtype.kind == "f" else (0, -1, 127)
            more = () if array.dtype.itemsize < 4 else (2**31 - 1, -(2**31))
            with np.errstate(all="ignore"):
                flat[rng.randrange(array.size)] = np.array(rng.choice((*odd, *more))).astype(array.dtype)
    elif kind == 2:
        some = slice(rng.randint(0, 3), -rng.randint(1, 3))
        array = rng.choice((array[some], np.concatenate([array, array]), array.astype(np.float64), array[..., None]))
    else:
        factor = rng.choice((0, -1, 1e30, 1e11, 3))
        with np.errstate(all="ignore"):
            array = (array * factor).astype(array.dtype)
    written = io.BytesIO()
    np.save(written, array, allow_pickle=False)
    files[name] = written.getvalue()


def catalogue_changed(rng: random.Random, files: Files) -> None:
    """Other types, more rows than there is room for, long texts."""
    frame = pl.read_parquet(io.BytesIO(files["catalogue.parquet"]))
    kind = rng.randrange(5)
    name = rng.choice(frame.columns)
    if kind == 0:
        frame = frame.with_columns(series(rng, name, frame.height).alias(name))
    elif kind == 1:
        rows = rng.choice((0, 1, 1_000_000, 20_000_000))
        frame = pl.select([pl.repeat("x" * 40, rows).alias(name) for name in frame.columns])
    elif kind == 2:
        text = rng.choice(("x" * 500_000, "a > " * 50_000, "a; " * 50_000, "a, b", "\u202e", "\x00"))
        frame = frame.with_columns(pl.when(pl.int_range(pl.len()) < 2).then(pl.lit(text)).otherwise(name).alias(name))
    elif kind == 3:
        frame = frame.sample(fraction=1, shuffle=True, seed=rng.randrange(99)).head(rng.randint(1, frame.height))
    else:
        frame = rng.choice((frame.drop(name), frame.rename({name: "other"}), frame.with_columns(more=pl.lit(1))))
    written = io.BytesIO()
    try:
        frame.write_parquet(written, compression="zstd", statistics=rng.random() < 0.5)
    except Exception:  # a type that Parquet does not have
        return
    files["catalogue.parquet"] = written.getvalue()


def graph_changed(rng: random.Random, files: Files) -> None:
    """Another operator, attribute, constant, connection or shape."""
    name = rng.choice([name for name in files if name.endswith(".onnx")])
    model = onnx.load_from_string(files[name])
    graph = model.graph
    for _ in range(rng.randint(1, 2)):
        kind = rng.choices(range(9), [10] * 7 + [1, 2])[0]  # what never ends takes long to tell
        node, weight = rng.choice(graph.node), rng.choice(graph.initializer)
        if kind == 0:
            node.op_type = rng.choice(
                ("Identity", "Relu", "Exp", "Log", "Sqrt", "Reciprocal", "Loop", "Transpose", "Q")
            )
        elif kind == 1 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice((weight.name, node.output[0], "", "vectors"))
        elif kind == 2:
            values = numpy_helper.to_array(weight).copy()
            factor = rng.choice((np.nan, np.inf, 0, -1, 1e20, 1000))
            with np.errstate(all="ignore"):
                values = (values * factor).astype(values.dtype)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        elif kind == 3 and weight.dims:
            weight.dims[0] = rng.choice((0, 1, -1, 2**40, weight.dims[0] + 1))
        elif kind == 4:
            weight.data_location = TensorProto.EXTERNAL
            entry = weight.external_data.add()
            entry.key, entry.value = "location", rng.choice(("/etc/passwd", "../../x", "encoder.onnx", "README.md"))
        elif kind == 5 and node.attribute:
            attribute = rng.choice(node.attribute)
            attribute.i, attribute.f = rng.choice((-1, 0, 2**40)), float("nan")
            attribute.ints[:] = [rng.choice((-1, 0, 9, 2**40)) for _ in attribute.ints]
        elif kind == 6:
            value = rng.choice([*graph.input, *graph.output])
            value.type.tensor_type.shape.dim.add().dim_value = 7
        elif kind == 7:
            endless(graph)
        else:
            huge = helper.make_tensor("huge", TensorProto.INT64, [1], [rng.choice((10**12, 10**9, 3 * 10**8))])
            graph.initializer.append(huge)
            graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["filled"]))
            graph.node.insert(1, helper.make_node("ReduceSum", ["filled"], ["sum"], keepdims=0))
            add_to_output(graph, "sum")
    files[name] = model.SerializeToString()


def add_to_output(graph: Any, name: str) -> None:
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = [f"{each}.before" if each == output else each for each in node.output]
        node.input[:] = [f"{each}.before" if each == output else each for each in node.input]
    graph.node.append(helper.make_node("Add", [f"{output}.before", name], [output]))


def endless(graph: Any) -> None:
    """A loop whose condition stays true."""
    scalar = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [scalar("i", TensorProto.INT64, []), scalar("go", TensorProto.BOOL, []), scalar("x", TensorProto.FLOAT, [])],
        [scalar("on", TensorProto.BOOL, []), scalar("y", TensorProto.FLOAT, [])],
    )
    graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nought"))
    graph.node.insert(0, helper.make_node("Loop", ["", "true", "nought"], ["end"], body=body))
    add_to_output(graph, "end")


def tokenizer_changed(rng: random.Random, files: Files) -> None:
    name = "text_encoder/tokenizer.json"
    if name not in files:
        return json_changed(rng, files)
    value = json.loads(files[name])
    kind = rng.randrange(4)
    if kind == 0:
        pattern = rng.choice(("(a|a)+$", "(a|a)*(a|a)*(a|a)*b$", "(.*)*x", "(?=a)*", "[", ""))
        value["normalizer"] = {
            "type": "Replace",
            "pattern": {"Regex": pattern},
            "content": rng.choice(("x", "a" * 999)),
        }
    elif kind == 1:
        vocabulary = value["model"].get("vocab")
        if isinstance(vocabulary, dict) and vocabulary:
            for word in rng.sample(sorted(vocabulary), min(5, len(vocabulary))):
                vocabulary[word] = rng.choice((0, 4294967295, 10**6))
    elif kind == 2:
        value["truncation"] = {"max_length": 1, "stride": 5, "strategy": "LongestFirst", "direction": "Right"}
    else:
        value["model"] = {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}
    files[name] = json.dumps(value).encode()


KINDS: tuple[tuple[int, Callable[[random.Random, Files], None]], ...] = (
    (4, bytes_damaged),
    (3, bytes_of_a_head_damaged),
    (1, replaced),
    (1, removed),
    (4, json_changed),
    (4, array_changed),
    (3, catalogue_changed),
    (3, graph_changed),
    (1, tokenizer_changed),
)


def damaged(number: int, exports: list[Files]) -> tuple[str, Files]:
    """The kind of damage, and the files."""
    rng = random.Random(number)
    files = dict(rng.choice(exports))
    damage = rng.choices([each for _, each in KINDS], [weight for weight, _ in KINDS])[0]
    damage(rng, files)
    if rng.random() < 0.95:
        try:
            head = json.loads(files["export.json"])
            digests = {name: hashlib.sha256(each).hexdigest() for name, each in files.items() if name in head["files"]}
            head["files"] = {**head["files"], **digests}
            files["export.json"] = json.dumps(head).encode("utf-8", "surrogatepass")
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
    return damage.__name__, files


# ---- what is done with it ---------------------------------------------------------------------------------------
def read(export: Path) -> Files:
    return {path.relative_to(export).as_posix(): path.read_bytes() for path in export.rglob("*") if path.is_file()}


def write(files: Files, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def answered(folder: Path, names: set[str]) -> str:
    """What became of an export; raises whatever is not proper."""
    try:
        recommender = Recommender.load(folder, threads=1, index="exact")
        with limited(folder.name, SECONDS, lambda error: None) as at:
            ask_once(recommender, at, texts=True)
    except LLMD4RecError as error:
        # The name of a file that is missing may be damaged itself.
        named = any(name in error.what for name in names) or error.what.endswith(" is missing")
        if not named or len(error.what) > 3000:
            raise ValueError(f"an error that names no file, or is too long: {error.what}") from error
        return "refused"
    return "served"


def work(numbers: range, exports: list[Path], folder: Path, out: Path, at: Any, limits: bool = True) -> None:
    """Some inputs, in a process that may end of one of them."""
    sources = [read(export) for export in exports]
    names = {name for files in sources for name in files}
    if limits and sys.platform == "linux":
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write of what they are given
    for number in numbers:
        at.value = number
        kind, files = damaged(number, sources)
        write(files, folder / "export")
        began = time.process_time()
        line: dict[str, Any] = {"kind": kind, "outcome": "finding", "number": number}
        try:
            line["outcome"] = answered(folder / "export", names)
        except BaseException as error:
            line["error"] = f"{type(error).__name__}: {error}"[:500]
        line["seconds"] = time.process_time() - began
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def fuzz(inputs: range, exports: list[Path], folder: Path, processes: int = 1) -> tuple[Counter[str], list[str]]:
    """How often which kind of damage had which outcome, and the findings."""
    afresh = multiprocessing.get_context("spawn")
    findings: list[str] = []
    counts: Counter[str] = Counter()
    workers = []

    def start(numbers: range, place: int) -> list[Any]:
        at, home = afresh.Value("q", -1), folder / f"worker-{place}"
        home.mkdir(parents=True, exist_ok=True)
        process = afresh.Process(target=work, args=(numbers, exports, home, home / "out", at))
        process.start()
        return [process, at, numbers, place, -1, 0.0]

    for place in range(processes):
        workers.append(start(inputs[place::processes], place))
    while workers:
        time.sleep(0.2)
        for worker in list(workers):
            process, at, numbers, place, last, since = worker
            number = at.value
            if number != last:
                worker[4:] = number, time.monotonic()
            hangs = number == last >= 0 and time.monotonic() - since > 6 * SLOW
            if hangs:
                process.kill()
            if not process.is_alive():
                process.join()
                workers.remove(worker)
                if process.exitcode:
                    kind, files = damaged(number, [read(export) for export in exports])
                    write(files, folder / f"worker-{place}" / "export")
                    why = "does not end" if hangs else f"ends the process ({process.exitcode})"
                    try:
                        Trial(60, 2 * SECONDS).run(folder / f"worker-{place}" / "export")
                        slow = process.exitcode == LLMD4RecError.exit_code and not hangs
                        counts[f"{kind}: slow and served"] += slow
                        if not slow:
                            findings.append(f"{number} {kind}: {why}, and the trial lets it pass")
                    except LLMD4RecError as error:
                        counts[f"{kind}: {why}; refused by the trial"] += 1
                        if not any(name in error.what for name in files):
                            findings.append(f"{number} {kind}: the trial names no file: {error.what}")
                    rest = numbers[numbers.index(number) + 1 :]
                    if rest:
                        workers.append(start(rest, place))
    for place in range(processes):
        for text in (folder / f"worker-{place}" / "out").read_text().splitlines():
            line = json.loads(text)
            counts[f"{line['kind']}: {line['outcome']}"] += 1
            if line["outcome"] == "finding":
                findings.append(f"{line['number']} {line['kind']}: {line['error']}")
            elif line["seconds"] > SLOW:
                findings.append(f"{line['kind']}: {line['outcome']} after {line['seconds']:.0f} s")
    return counts, findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only is not None:
            sources = [read(export) for export in arguments.exports]
            kind, files = damaged(arguments.only, sources)
            write(files, Path(folder) / "export")
            print(kind, answered(Path(folder) / "export", {name for each in sources for name in each}))
            return
        numbers = range(arguments.first, arguments.first + arguments.inputs)
        counts, findings = fuzz(numbers, arguments.exports, Path(folder), arguments.processes)
    for what, count in sorted(counts.items()):
        print(f"{count:6d}  {what}")
    print(f"{sum(counts.values()):6d}  in all, {len(findings)} findings")
    for finding in findings:
        print(finding)
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
