"""Pickles with attacks of every kind: read as data or refused; nothing is imported or called, and memory is bounded."""

import ast
import io
import pickle
import random
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import resnetkit.convert.files.pickles
from resnetkit.convert.files.pickles import Name, PickleError, Pickles, Record, Reference
from resnetkit.convert.files.readers import read_weights
from resnetkit.errors import ModelFileError

TENSORS = {"conv1.weight": torch.arange(12.0).reshape(1, 3, 2, 2), "fc.bias": torch.tensor([1.0, 2.0])}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def load(pickled: bytes):
    return Pickles(io.BytesIO(pickled), len(pickled)).load()


def with_beside(path: Path, body: bytes) -> Path:
    """Write a PyTorch file with TENSORS in "net" and, as another entry, the value that the instructions `body` make."""
    stream = io.BytesIO()
    torch.save({"net": TENSORS, "beside": "PLACEHOLDER"}, stream)
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                placeholder = text("PLACEHOLDER")
                assert placeholder in content
                content = content.replace(placeholder, body)
            target.writestr(name, content)
    return path


CALLED = {
    "posix.system": (text("touch canary"),),
    "os.system": (text("touch canary"),),
    "nt.system": (text("touch canary"),),
    "builtins.eval": (text("open('canary', 'w')"),),
    "__builtin__.eval": (text("open('canary', 'w')"),),
    "builtins.exec": (text("open('canary', 'w')"),),
    "builtins.compile": (text("open('canary', 'w')"), text("x"), text("exec")),
    "builtins.__import__": (text("antigravity"),),
    "builtins.getattr": (b"cos\nsystem\n", text("__globals__")),
    "builtins.open": (text("canary"), text("w")),
    "builtins.print": (text("canary"),),
    "io.open": (text("canary"), text("w")),
    "subprocess.Popen": (b"](" + text("touch") + text("canary") + b"e",),
    "subprocess.check_output": (b"](" + text("touch") + text("canary") + b"e",),
    "importlib.import_module": (text("antigravity"),),
    "runpy._run_code": (text("open('canary', 'w')"), b"}"),
    "timeit.timeit": (text("open('canary', 'w')"),),
    "pty.spawn": (text("touch canary"),),
    "webbrowser.open": (text("http://localhost"),),
    "pathlib.Path.touch": (text("canary"),),
    "shutil.rmtree": (text("canary"),),
    "pickle.loads": (b"B" + struct.pack("<I", 3) + b"N0.",),
    "marshal.loads": (b"B" + struct.pack("<I", 1) + b"N",),
    "types.CodeType": (b"K\x00",),
    "types.FunctionType": (b"N", b"}"),
    "ctypes.CDLL": (text("libc.so.6"),),
    "code.InteractiveInterpreter": (),
    "operator.methodcaller": (text("system"), text("touch canary")),
    "functools.partial": (b"cos\nsystem\n", text("touch canary")),
    "builtins.map": (b"cos\nsystem\n", b"](" + text("touch canary") + b"e"),
    "torch.load": (text("canary"),),
    "torch.hub.load": (text("someone/else"), text("model")),
    "torch.jit.load": (text("canary"),),
    "torch.storage._load_from_bytes": (b"B" + struct.pack("<I", 9) + b"cos\nx\n)R.",),
    "torch.utils._pytree.treespec_loads": (text("[1, canary]"),),
    "numpy.load": (text("canary"),),
    "numpy.testing._private.utils.runstring": (text("open('canary', 'w')"), b"}"),
    "joblib.load": (text("canary"),),
    "cloudpickle.cloudpickle._make_function": (b"N",),
    "resnetkit.modelfile.load": (text("canary"),),
}
"""The calls of published attacks, with their arguments as instructions."""


def calls(name: str, args: tuple[bytes, ...], how: str) -> bytes:
    """Return instructions that would call it."""
    module, _, function = name.rpartition(".")
    named = f"c{module}\n{function}\n".encode()
    together = b"(" + b"".join(args) + b"t"
    match how:
        case "reduce":
            return named + together + b"R"
        case "stack global":
            return text(module) + text(function) + b"\x93" + together + b"R"
        case "newobj":
            return named + together + b"\x81"
        case "newobj_ex":
            return named + together + b"}\x92"
        case "obj":
            return b"(" + named + b"".join(args) + b"o"
        case "inst":
            return b"(" + b"".join(args) + b"i" + named[1:]
        case "build":
            return named + together + b"R}" + text("__setstate__") + named + b"sb"
    raise AssertionError


HOWS = ("reduce", "stack global", "newobj", "newobj_ex", "obj", "inst", "build")


BUILD_ON_A_CLASS = "it sets attributes of something that is not an object"
REFUSED = {
    "attributes of a class": (
        b"ccollections\nOrderedDict\n}" + text("__init__") + b"cos\nsystem\nsb",
        BUILD_ON_A_CLASS,
    ),
    "attributes of a module": (b"csys\nmodules\n}" + text("os") + b"K\x01sb", BUILD_ON_A_CLASS),
    "entries of a class": (
        b"cos\nenviron\n" + text("PATH") + text("/tmp") + b"s",
        "entries of something that is not a dictionary",
    ),
    "items of a class": (b"csys\npath\n" + text("/tmp") + b"a", "adds items to something that is not a list"),
    "a name that a call makes": (text("os") + b"cos\ngetcwd\n)R\x93", "name of a class that is not text"),
    "a long string": (b"X\xff\xff\xff\x7f", "truncated"),
    "a longer string": (b"\x8d" + b"\xff" * 7 + b"\x7f", "truncated"),
    "long bytes": (b"\x8e" + b"\xff" * 7 + b"\x7f", "truncated"),
    "a long bytearray": (b"\x96" + b"\x00" * 7 + b"\x40", "truncated"),
    "a number of two gigabytes": (b"\x8b\xff\xff\xff\x7f", "whole number of 2,147,483,647 bytes"),
    "a number of negative length": (b"\x8b\xff\xff\xff\xff", "whole number of 4,294,967,295 bytes"),
    "a number of many digits": (b"I" + b"9" * 5000 + b"\n", "whole number of 5,000 digits"),
    "a long of many digits": (b"L" + b"9" * 5000 + b"L\n", "whole number of 5,001 digits|whole number of 5,000"),
    "a frame that lies": (b"\x95" + b"\xff" * 8 + b"N", "truncated"),
    "a buffer elsewhere": (b"\x97", "unknown instruction"),
    "another protocol": (b"\x80\xffN", "protocol 255"),
    "nothing to pop": (b"0" * 20, "no valid operands"),
    "nothing to refer to": (b"j\xff\xff\xff\xff", "no valid operands"),
    "marks": (b"(" * 20_000, "nested deeper"),
    "an odd number of entries": (b"}(K\x01u", "entries of something that is not a dictionary"),
}


def laugh(depth: int) -> bytes:
    """Refer to the object of the depth before."""
    return b"j" + struct.pack("<I", 5000 + depth) if depth else text("ha")


def keep(depth: int) -> bytes:
    return b"r" + struct.pack("<I", 5001 + depth) + b"0"


INERT = {
    "an extension's number": b"\x82\x01)R",
    "four bytes of an extension": b"\x84\xff\xff\xff\x7f)R",
    "a persistent text": b"Pos.system\n",
    "a persistent call": b"cos\nsystem\n(X\x04\x00\x00\x00truetRQ",
    "a persistent storage that is none": b"(" + text("module") + b"cos\nsystem\n" + text("x") + b"NtQ",
    "a list in itself": b"]\x94j\x00\x10\x00\x00".replace(b"\x94j", b"r\x00\x10\x00\x00j") + b"a",
    "a dictionary in itself": b"}r\x00\x10\x00\x00" + text("self") + b"j\x00\x10\x00\x00s",
    "an object that is its own state": b"cos\nsystem\n)Rr\x00\x10\x00\x00j\x00\x10\x00\x00b",
    "a key that is a call": b"}cos\nsystem\n)RK\x01s",
    "a key that can't be hashed": b"}]K\x01s",
    "a set of calls": b"\x8f(cos\nsystem\n)Re",
    "deep tuples": b")" + b"\x85" * 100_000,
    "deep calls": b"cos\nsystem\n" + b")R" * 100_000,
    "deep states": b"N" + b"".join(b"r\x00\x10\x00\x00cx\ny\n)Rj\x00\x10\x00\x00b" for _ in range(10_000)),
    "a name without end": b"c" + b"x" * 100_000 + b"\ny\n",
    # A list of ten times a list of ten times a list, sixty deep; and so with dictionaries.
    "a billion laughs": b"".join(b"](" + laugh(n) * 10 + b"e" + keep(n) for n in range(60)) + laugh(60),
    "dictionaries that laugh": b"".join(
        b"}(" + b"".join(text(str(i)) + laugh(n) for i in range(10)) + b"u" + keep(n) for n in range(60)
    )
    + laugh(60),
    "long text many times": b"](" + text("x" * 10**5) + b"r\x00\x10\x00\x00" + b"j\x00\x10\x00\x00" * 2000 + b"e",
    "text of Python 2": b"Vab\\u00fc\n",
    "lone surrogates": b"X\x03\x00\x00\x00\xed\xa0\x80",
    "bytes that are no text": b"U\x02\xff\xfe",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_checkpoint_has_is_refused(name, tmp_path):
    body, words = REFUSED[name]
    with pytest.raises(PickleError, match=words):
        load(b"\x80\x02" + body + b".")
    with pytest.raises(ModelFileError, match=rf"w\.pth is not a complete PyTorch file.*({words})"):
        read_weights(with_beside(tmp_path / "w.pth", body))


@pytest.mark.parametrize("name", INERT)
def test_what_is_odd_beside_the_tensors_is_left_alone(name, tmp_path):
    read = read_weights(with_beside(tmp_path / "w.pth", INERT[name]))
    assert all(torch.equal(read.tensors[key], tensor) for key, tensor in TENSORS.items())
    assert len(str(read.objects)) < 10**7


def test_the_same_attributes_many_times(tmp_path):
    """A few hundred objects with the same fifty thousand attributes: few bytes, but many entries."""
    state = b"}(" + b"".join(text(str(n)) + b"N" for n in range(50_000)) + b"ur\x00\x10\x00\x00"
    body = b"](" + state + b"cx\ny\n)Rj\x00\x10\x00\x00b" * 200 + b"e"
    with pytest.raises(ModelFileError, match="repeats the same objects more often than any checkpoint"):
        read_weights(with_beside(tmp_path / "w.pth", body))


@pytest.mark.parametrize("kind", ["names", "arrays", "storages", "values"])
def test_a_long_text_many_times_takes_its_memory_once(kind, tmp_path):
    """Hundreds of objects share a megabyte of text; copies for each would need much memory."""
    many, megabyte = 500, 10**6
    long = text("x" * megabyte) + b"r\x00\x10\x00\x000N"
    again = b"j\x00\x10\x00\x00"
    as_bytes = b"c_codecs\nencode\n(" + again + text("latin1") + b"tR"
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J" + struct.pack("<i", megabyte // 4) + b"\x85"
    array += b"cnumpy\ndtype\n(" + text("f4") + b"tR\x89" + as_bytes + b"tb"
    storage = b"ctorch.storage\n_load_from_bytes\n" + as_bytes + b"\x85R"
    one = {
        "names": again + again + b"\x93)R",
        "arrays": array,
        "storages": b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x00))tR",
        "values": again,
    }[kind]
    path = with_beside(tmp_path / "w.pth", b"](" + long + one * many + b"e")
    tracemalloc.start()
    said = ""
    try:
        assert len(str(read_weights(path).objects)) < 20 * megabyte
    except ModelFileError as error:
        said = str(error)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50 * megabyte
    assert bool(said) == (kind == "storages")


def test_a_tensor_is_not_wrapped_without_end(tmp_path):
    body = b"K\x01" + b"r\x00\x10\x00\x000ctorch._utils\n_rebuild_parameter\n(j\x00\x10\x00\x00tR" * 5000
    with pytest.raises(ModelFileError, match="wrapped too often"):
        read_weights(with_beside(tmp_path / "w.pth", body))


@pytest.mark.parametrize("how", HOWS)
def test_calls_are_records_of_what_was_asked(how, tmp_path):
    for name, args in CALLED.items():
        read = read_weights(with_beside(tmp_path / "w.pth", calls(name, args, how)))
        assert list(read.tensors) == list(TENSORS)
        beside = read.objects["beside"]
        assert isinstance(beside, dict)
        assert beside["class"] == name
        assert ("args" in beside) == bool(args or how == "newobj_ex")


PROOF = """
    import sys
    from pathlib import Path
    from resnetkit.convert.files.readers import read_weights
    from resnetkit.errors import ModelFileError

    honest, files = ([Path(name) for name in given.splitlines()] for given in sys.stdin.read().split("---"))
    honest, files = ([path for path in paths if path.name] for paths in (honest, files))
    for path in honest:  # what is imported for the first file of a form is imported now
        read_weights(path)
    try:
        read_weights(files[0].with_name("none"))
    except (ModelFileError, OSError):
        pass
    events, opened, watching = set(), set(), True

    def watch(event, arguments):
        if watching:
            events.add(event)
            if event == "open":
                opened.add(str(arguments[0]))

    sys.addaudithook(watch)
    modules, path = set(sys.modules), list(sys.path)
    refused = 0
    for file in honest + files:
        try:
            assert read_weights(file).tensors
        except ModelFileError:
            refused += 1
    watching = False
    assert set(sys.modules) == modules, set(sys.modules) - modules
    assert sys.path == path
    assert opened == set(map(str, honest + files)), opened
    assert events <= {"open", "builtins.id"}, events
    print(refused)
"""


def test_nothing_is_imported_or_called(tmp_path):
    """By Python's audit events, reading any file, harmless or not, does nothing except opening it."""
    folder = tmp_path / "files"
    folder.mkdir()
    honest = [folder / "zip.pth", folder / "legacy.pth", folder / "plain.pkl", folder / "whole.pt"]
    torch.save({"net": TENSORS}, honest[0])
    torch.save({"net": TENSORS}, honest[1], _use_new_zipfile_serialization=False)
    honest[2].write_bytes(pickle.dumps({"net": TENSORS}))
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), honest[3])
    honest.append(with_beside(folder / "zipped by Python.pth", b"N"))  # which has its names in another encoding
    bodies = [calls(name, args, how) for name, args in CALLED.items() for how in HOWS] + list(INERT.values())
    files = [with_beside(folder / f"{index}.pth", body) for index, body in enumerate(bodies)]
    refused = [body for body, _ in REFUSED.values()]
    files += [with_beside(folder / f"refused{index}.pth", body) for index, body in enumerate(refused)]
    given = "\n".join(map(str, honest)) + "\n---\n" + "\n".join(map(str, files))
    before = set(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROOF)], input=given, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == len(refused)
    assert set(tmp_path.rglob("*")) == before


def test_the_proof_would_see_an_unpickler(tmp_path):
    """The same with torch.load instead of the reader fails, so the audit works."""
    path = with_beside(tmp_path / "w.pth", calls("builtins.len", (text("abc"),), "reduce"))
    script = textwrap.dedent(PROOF).replace(
        "from resnetkit.convert.files.readers import read_weights",
        "import torch\nclass read_weights:\n  def __init__(self, p): self.tensors = torch.load(p, weights_only=False)",
    )
    done = subprocess.run([sys.executable, "-c", script], input=f"---\n{path}", capture_output=True, text=True)
    assert "pickle.find_class" in done.stderr


def test_the_machine_has_no_way_to_import_or_call_by_name():
    """Its source imports only four modules, and contains no names that turn text into code."""
    tree = ast.parse(Path(resnetkit.convert.files.pickles.__file__).read_text())
    imported = {
        getattr(node, "module", None) or node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"codecs", "struct", "collections.abc", "typing"}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    wrong = {"getattr", "setattr", "eval", "exec", "compile", "__import__", "globals", "vars", "type", "open", "hash"}
    assert not (names | attributes) & wrong
    assert not [name for name in attributes if name.startswith("__")]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_pickle_makes(protocol):
    """Numbers, text, bytes, lists and tuples in every protocol; dictionaries as their entries."""
    values = [
        None,
        True,
        False,
        0,
        255,
        65536,
        -5,
        2**40,
        -(2**70),
        2**800,
        1.5,
        "ü",
        "x" * 300,
        (),
        (1,),
        (1, 2, 3, 4),
    ]
    values += [[1, [2, (3, "a")]], "same", "same"]
    read = load(pickle.dumps(values, protocol))
    assert read == values
    assert [type(value) for value in read] == [type(value) for value in values]
    made = load(pickle.dumps({"a": 1, 2: [3]}, protocol))
    assert isinstance(made, Record)
    assert (made.name, list(made.entries)) == ("builtins.dict", [("a", 1), (2, [3])])
    ordered = load(pickle.dumps(OrderedDict(a=1), protocol))
    assert ordered.name in ("collections.OrderedDict", "copy_reg._reconstructor")
    if protocol > 1:
        assert list(ordered.entries) == [("a", 1)]


def test_names_and_references_stay_text():
    named = load(b"\x80\x02cos\nsystem\n.")
    assert isinstance(named, Name)
    assert named.text == "os.system"
    referred = load(b"\x80\x02K\x07Q.")
    assert isinstance(referred, Reference)
    assert referred.to == 7


def test_pickles_that_are_mutated_give_values_or_one_error():
    """Harmless pickles with changed, cut, doubled and moved instructions give a value or PickleError."""
    honest = [
        pickle.dumps({"net": [1.5, "a", b"b", (1, 2)], "more": {3: OrderedDict(x=1)}}, protocol)
        for protocol in range(6)
    ]
    honest += [calls(name, args, how) + b"." for name, args in list(CALLED.items())[:4] for how in HOWS]
    honest += [body + b"." for body in INERT.values() if len(body) < 1000]
    chance, read = random.Random(0), 0
    for turn in range(6000):
        content = bytearray(honest[turn % len(honest)])
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(content))
            match chance.randrange(4):
                case 0:
                    content[at] = chance.randrange(256)
                case 1:
                    del content[at : at + chance.randint(1, 8)]
                case 2:
                    content[at:at] = content[at : at + chance.randint(1, 20)]
                case 3:
                    content[at:at] = chance.choice(
                        [b"\x93", b"R", b"b", b"\x81", b"(", b"t", b"u", b"o", b"0", b"\x95"]
                    )
            if not content:
                break
        try:
            load(bytes(content))
            read += 1
        except PickleError:
            pass
    assert 500 < read < 5500


def test_files_whose_pickle_is_mutated(tmp_path):
    """The same in an archive with right checksums gives tensors, or one error with the file's name."""
    stream = io.BytesIO()
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save({"net": net, "state_dict": net.state_dict(), "epoch": 3}, stream)
    with zipfile.ZipFile(stream) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    chance, path, read = random.Random(0), tmp_path / "w.pth", 0
    for _ in range(400):
        content = bytearray(parts[pickled])
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(content))
            if chance.random() < 0.6:
                content[at] = chance.choice([0, 1, 2, 255, chance.randrange(256)])
            else:
                content[at : at + chance.randint(1, 9)] = content[: chance.randint(0, 9)]
        with zipfile.ZipFile(path, "w") as target:
            for name, part in parts.items():
                target.writestr(name, bytes(content) if name == pickled else part)
        said = ""
        try:
            read += all(isinstance(tensor, torch.Tensor) for tensor in read_weights(path).tensors.values())
        except ModelFileError as error:
            said = str(error)
        assert not said or str(path) in said
    assert 50 < read < 390


@pytest.mark.parametrize(
    ("limit", "body"),
    [
        ("MOST_STEPS", b"K\x010" * 600 + b"N"),
        ("MOST_RECORDS", b"}0" * 1001 + b"N"),
        ("MOST_RECORDS", b"c\n\n" + b")R" * 1001),
        ("MOST_RECORDS", b")" + b"\x85" * 1002),
        ("MOST_RECORDS", b"N" + b"\x94" * 2004),
    ],
)
def test_work_is_bounded(limit, body, monkeypatch):
    monkeypatch.setattr(resnetkit.convert.files.pickles, limit, 1000)
    with pytest.raises(PickleError, match="more objects than any checkpoint"):
        load(b"\x80\x02" + body + b".")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_memory_stays_bounded(tmp_path):
    """Pickles that make many objects of few bytes, in a process with 1.5 GB more than torch needs."""
    script = """
        import resource, sys
        from pathlib import Path
        from resnetkit.convert.files.readers import read_weights
        from resnetkit.errors import ModelFileError

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 3 * 2**29
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        for name in sys.stdin.read().split():
            try:
                read_weights(Path(name))
            except ModelFileError:
                pass
    """
    bombs = [b"](" + b"}" * 2_900_000, b"cx\ny\n" + b")R" * 990_000, b"K\x01" + b"\x94" * 2_900_000]
    bombs += [b"](" + b"K\x01" * 2_900_000 + b"e", b"](" + b")\x85" * 990_000 + b"e"]
    files = []
    for index, bomb in enumerate(bombs):
        path = tmp_path / f"{index}.pkl"
        path.write_bytes(b"\x80\x02" + bomb + b".")
        files.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], input="\n".join(files), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_attacks_are_real(tmp_path):
    """Python's own unpickler runs them."""
    canary = tmp_path / "canary"
    content = b"\x80\x02" + calls("posix.system", (text(f"touch {canary}"),), "stack global") + b"."
    assert isinstance(load(content), Record)
    assert not canary.exists()
    assert pickle.loads(content) == 0
    assert canary.exists()
