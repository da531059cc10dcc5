"""The pickle layout is read, hostile pickles execute nothing, and damage gives one sentence."""

import os
import pickle
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import fake_cifar
from tests.data.fake_cifar import SMALL_CIFAR10, SMALL_CIFAR100, array, dictionary, integers, program, string
from tinyres.data.cifar import read_cifar
from tinyres.data.unpickling import read_pickle
from tinyres.errors import UserError

PATH = Path("the_file")
PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
OFFICIAL = program(dictionary({b"data": array(PIXELS), b"labels": integers(np.arange(4))}))


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_arrays_of_an_old_and_of_a_new_numpy(module):
    content = program(dictionary({b"data": array(PIXELS, module=module), b"labels": integers(np.arange(4))}))
    read = read_pickle(content, PATH)
    assert np.array_equal(read[b"data"], PIXELS)
    assert read[b"data"].dtype == np.uint8
    assert read[b"labels"] == [0, 1, 2, 3]


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_written_anew_by_today_s_python(order):
    pixels = np.asarray(PIXELS, order=order)
    content = pickle.dumps({b"data": pixels, b"labels": [1, 300, 70_000], b"batch_label": b"x"}, protocol=4)
    read = read_pickle(content, PATH)
    assert np.array_equal(read[b"data"], PIXELS)
    assert read[b"labels"] == [1, 300, 70_000]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("labels", [list, np.array])
def test_a_file_written_anew_in_any_protocol(protocol, order, text, labels):
    """As Python 2's files come out of ``pickle.load(file, encoding="latin1")``, text is text."""
    kind = str if text else lambda name: name.encode()
    pixels = np.asarray(PIXELS, order=order)
    content = {kind("data"): pixels, kind("labels"): labels([1, 3, 9, 255]), kind("batch_label"): kind("")}
    content[kind("label_names")] = [kind("cat"), kind("dog")]
    for module in ("numpy._core", "numpy.core"):  # as NumPy 2 says, and as NumPy 1 did
        program = pickle.dumps(content, protocol)
        if protocol < 4:  # later ones count the letters of a name
            program = program.replace(b"cnumpy._core", f"c{module}".encode())
        read = read_pickle(program, PATH)
        assert np.array_equal(read[b"data"], PIXELS)
        assert list(read[b"labels"]) == [1, 3, 9, 255]
        assert (read[b"batch_label"], read[b"label_names"]) == (b"", [b"cat", b"dog"])


def test_a_read_only_array_and_one_with_gaps():
    for pixels in (PIXELS[:, ::2], np.frombuffer(bytes(24), np.uint8).reshape(4, 6)):
        read = read_pickle(pickle.dumps({"data": pixels}, 5), PATH)
        assert np.array_equal(read[b"data"], pixels)


def test_a_protocol_of_python_2_written_as_text():
    program = b"(dp0\nS'labels'\np1\n(lp2\nI3\naI7\nasS'batch_label'\np3\nS'a batch'\np4\ns."
    assert read_pickle(program, PATH) == {b"labels": [3, 7], b"batch_label": b"a batch"}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("text", [False, True])
def test_a_whole_data_set_written_anew(tmp_path, protocol, text):
    for cifar in (SMALL_CIFAR10, SMALL_CIFAR100):
        folder = fake_cifar.write_pickled(tmp_path, cifar)
        before = read_cifar(tmp_path, cifar)
        for path in folder.iterdir():
            content = pickle.loads(path.read_bytes(), encoding="latin1" if text else "bytes")
            path.write_bytes(pickle.dumps(content, protocol))
        for one, other in zip(before, read_cifar(tmp_path, cifar), strict=True):
            assert np.array_equal(one.images, other.images)
            assert np.array_equal(one.labels, other.labels)
            assert one.classes == other.classes


def test_what_was_written_opcode_by_opcode_is_what_pickle_reads():
    """The files the other tests write are good pickles by the standard library's judgement."""
    content = program(dictionary({b"labels": integers(np.arange(4)), b"label": string(b"text")}))
    assert pickle.loads(content, encoding="bytes") == {b"labels": [0, 1, 2, 3], b"label": b"text"}


class Hostile:
    """Pickles to a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_programs(canary: str) -> dict[str, bytes]:
    """Return pickles each of which would create the file `canary` if it were executed, or do worse."""
    calls = {
        "os.system": Hostile(os.system, f"touch {canary}"),
        "eval": Hostile(eval, f"open({canary!r}, 'w')"),
        "exec": Hostile(exec, f"open({canary!r}, 'w')"),
        "open": Hostile(open, canary, "w"),
        "Popen": Hostile(subprocess.Popen, ["touch", canary]),
        "numpy function": Hostile(np.savetxt, canary, [1]),
        "numpy method": Hostile(np.ndarray.tofile, PIXELS, canary),
        "pickle.loads": Hostile(pickle.loads, pickle.dumps(Hostile(os.system, f"touch {canary}"))),
        "getattr": Hostile(getattr, np.ndarray, "tofile"),
        "file of numpy": Hostile(np.memmap, canary, "u1", "w+", 0, (1,)),
    }
    programs = {
        f"{name}, protocol {protocol}": pickle.dumps({b"data": call}, protocol)
        for name, call in calls.items()
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    }
    touch = string(f"touch {canary}".encode())
    by_hand = {
        "INST": b"(" + touch + b"ios\nsystem\n",
        "OBJ": b"(cos\nsystem\n" + touch + b"o",
        "NEWOBJ": b"cos\nsystem\n(" + touch + b"t\x81",
        "dotted name": b"\x8c\x05numpy\x8c\x10ndarray.__class__\x93",
        "module of a stand-in": b"ctinyres.data.unpickling\nos\n",
        "persistent identifier": b"Pid\n",
        "extension": b"\x82\x01",
        "state of a stand-in's class": b"cnumpy\nndarray\n}" + string(b"__setstate__") + b"NsN\x86b",
        "a codec": b"c_codecs\nencode\n(" + string(b"x") + string(b"idna") + b"tR",
        "a codec with text": b"c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00hex\x86R",
        "state of a codec": b"c_codecs\nencode\n}" + string(b"__code__") + b"NsN\x86b",
        "state of the bytes": b"c__builtin__\nbytes\n)R}" + string(b"x") + b"Nsb",
        "many bytes": b"c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R",
        "a decoder": b"c_codecs\ndecode\n" + string(b"x") + string(b"hex") + b"\x86R",
        "call of an array": b"cnumpy\nndarray\n(K\x01tR)R",
    }
    return programs | {name: program(dictionary({b"data": code})) for name, code in by_hand.items()}


@pytest.mark.parametrize("name", hostile_programs(""))
def test_a_hostile_pickle_executes_nothing(tmp_path, name):
    canary = tmp_path / "canary"
    content = hostile_programs(str(canary))[name]
    with pytest.raises(UserError, match="the_file is not an official CIFAR file") as caught:
        read_pickle(content, PATH)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_the_canary_can_die(tmp_path):
    """Of the same programs, the ordinary unpickler executes some: so the test above can fail."""
    canary = tmp_path / "canary"
    pickle.loads(hostile_programs(str(canary))["os.system, protocol 2"])
    assert canary.exists()


def test_nothing_hostile_is_even_imported():
    content = program(dictionary({b"data": b"cantigravity\nfly\n"}))
    code = "import sys; from tinyres.data.unpickling import read_pickle\n"
    code += f"try: read_pickle({content!r}, 'x')\nexcept ValueError: sys.exit('antigravity' in sys.modules)\n"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


STATES = {
    "no state": b"",
    "not a tuple": b"K\x01b",
    "short": b"(K\x01K\x02tb",
    "huge": b"(K\x01\x8c\x01x\x85" + b"NNNtb",
    "shape is a word": b"(K\x01U\x03abc" + b"cnumpy\ndtype\nU\x02u1\x85R\x89U\x03abctb",
    "other length": b"(K\x01K\x04\x85" + b"cnumpy\ndtype\nU\x02u1\x85R\x89U\x03abctb",
    "bytes are a list": b"(K\x01K\x01\x85" + b"cnumpy\ndtype\nU\x02u1\x85R\x89](K\x01etb",
    "dtype is text": b"(K\x01K\x03\x85U\x02u1\x89U\x03abctb",
    "dtype of objects": b"(K\x01K\x01\x85" + b"cnumpy\ndtype\nU\x01O\x85R\x89U\x08abcdefghtb",
    "dtype without a code": b"(K\x01K\x03\x85" + b"cnumpy\ndtype\n)R\x89U\x03abctb",
}


@pytest.mark.parametrize("case", STATES)
def test_an_array_that_is_none(case):
    code = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + STATES[case]
    with pytest.raises(UserError):
        read_pickle(program(dictionary({b"data": code})), PATH)


BOMBS = {
    "place in memory": b"}r\xff\xff\xff\x03.",
    "place in memory as text": b"}p99999999\n.",
    "place in memory below none": b"}p-1\n.",
    "bytes": b"}B\xff\xff\xff\x1fabc.",
    "more bytes": b"}\x8e\xff\xff\xff\x1f\x00\x00\x00\x00abc.",
    "array of bytes": b"}\x96\xff\xff\xff\x1f\x00\x00\x00\x00abc.",
    "frame": b"\x95\xff\xff\xff\x1f\x00\x00\x00\x00}.",
    "number": b"}\x8b\xff\xff\xff\x1fabc.",
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_small_file_cannot_ask_for_much_memory(case):
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            read_pickle(b"\x80\x05" + BOMBS[case], PATH)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_every_cut_is_noticed():
    for end in range(len(OFFICIAL)):
        with pytest.raises(UserError):
            read_pickle(OFFICIAL[:end], PATH)


@given(st.data())
def test_damage_anywhere_gives_a_dict_or_a_user_error(data):
    content = bytearray(OFFICIAL)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(UserError):
        assert isinstance(read_pickle(bytes(content), PATH), dict)


@given(st.binary(max_size=40))
def test_noise_gives_one_sentence(content):
    with pytest.raises(UserError):
        read_pickle(content, PATH)


CONTENTS = {
    "no labels": ({b"data": array(PIXELS)}, "has no 'labels'"),
    "labels of the other data set": ({b"data": array(PIXELS), b"fine_labels": b"]"}, "not CIFAR-10"),
    "no data": ({b"labels": b"]"}, "does not hold 4 images"),
    "few images": ({b"labels": b"]", b"data": array(np.zeros((3, 3072), np.uint8))}, "does not hold 4 images"),
    "small images": ({b"labels": b"]", b"data": array(PIXELS)}, "does not hold 4 images"),
    "data is text": ({b"labels": b"]", b"data": string(b"pixels")}, "does not hold 4 images"),
    "few labels": (integers(np.arange(3)), "does not hold 4 whole numbers"),
    "labels are a number": (b"K\x04", "does not hold 4 whole numbers"),
    "labels are words": (b"](" + string(b"cat") * 4 + b"e", "does not hold 4 whole numbers"),
    "labels are true": (b"](\x88\x88\x88\x88e", "does not hold 4 whole numbers"),
    "label too large": (integers(np.array([1, 2, 10, 4])), "gives image 2 the class 10"),
    "label negative": (integers(np.array([1, 2, -1, 4])), "gives image 2 the class -1"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_file_with_other_content(tmp_path, case):
    items, message = CONTENTS[case]
    if isinstance(items, bytes):
        items = {b"labels": items, b"data": array(np.zeros((4, 3072), np.uint8))}
    folder = fake_cifar.write_pickled(tmp_path, SMALL_CIFAR10)
    (folder / "data_batch_3").write_bytes(program(dictionary(items)))
    with pytest.raises(UserError, match=message) as caught:
        read_cifar(tmp_path, SMALL_CIFAR10)
    assert "data_batch_3" in str(caught.value)


def test_other_class_names(tmp_path):
    folder = fake_cifar.write_pickled(tmp_path, SMALL_CIFAR100)
    for names in (b"N", b"](K\x01e", b"](" + string(b"one") + b"e"):
        (folder / "meta").write_bytes(program(dictionary({b"fine_label_names": names})))
        with pytest.raises(UserError, match="names of 100 classes"):
            read_cifar(tmp_path, SMALL_CIFAR100)
