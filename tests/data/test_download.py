"""Downloads that survive, against a local server that misbehaves in every way we could think of."""

import hashlib
import io
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest

import tinyres.data.download
import tinyres.data.load
import tinyres.data.transfer
from tests.data.fake_cifar import SMALL_CIFAR10, fake_images, write_pickled
from tests.data.servers import serving
from tinyres.data import load_dataset
from tinyres.data.download import ARCHIVES, download, main
from tinyres.data.unpacking import unpack
from tinyres.errors import UserError
from tinyres.system.command_line import exit_with_one_sentence

FOLDER = SMALL_CIFAR10.pickled.folder
FILE = "cifar-10-python.tar.gz"


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    """A small archive in the official form."""
    folder = write_pickled(tmp_path_factory.mktemp("archive"), SMALL_CIFAR10)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, arcname=FOLDER)
    return buffer.getvalue()


@pytest.fixture
def server(content, monkeypatch, tmp_path):
    """Serve it, and make everybody believe that it is CIFAR-10."""
    md5 = hashlib.md5(content).hexdigest()
    small = replace(ARCHIVES["cifar10", "python"], size=len(content), md5=md5, mirrors=())
    monkeypatch.setitem(ARCHIVES, ("cifar10", "python"), small)
    monkeypatch.setitem(tinyres.data.load._CIFAR, "cifar10", SMALL_CIFAR10)
    monkeypatch.setattr(tinyres.data.transfer, "TIMEOUT", 0.2)
    monkeypatch.setattr(tinyres.data.transfer, "PAUSE", 0.01)
    monkeypatch.setattr(tinyres.data.transfer, "CHUNK", 1000)
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path))
    monkeypatch.delenv("TINYRES_MIRRORS", raising=False)
    with serving(content) as server:
        monkeypatch.setattr(tinyres.data.download, "OFFICIAL", server.url("missing"))
        yield server


def fetched(folder) -> bool:
    """Tell whether the data set is there, reads well, and nothing else was left behind."""
    _, test = load_dataset("cifar10")
    assert np.array_equal(test.labels, fake_images(SMALL_CIFAR10)[-1][3])
    return sorted(path.name for path in folder.parent.iterdir()) == [".lock", FOLDER]


SURVIVED = [
    "good",
    "slow",
    "cut",
    "cut_and_busy",
    "cut_without_range",
    "no_range",
    "busy_at_first",
    "redirect",
    "silent",
]
HOPELESS = {
    "missing": "404 Not Found",
    "broken": "503",
    "hangs_up": "127.0.0.1",
    "login_page": "of 26 bytes",
    "garbage": "checksum is wrong",
    "endless": "checksum is wrong",
    "not_http": "127.0.0.1",
    "wrong_range": "another part of the file",
}


@pytest.mark.parametrize("behaviour", SURVIVED)
def test_one_difficult_server_is_enough(server, behaviour):
    begun = time.monotonic()
    assert fetched(download("cifar10", mirrors=[server.url(behaviour)], quiet=True))
    assert {folder for folder, _ in server.log} <= {behaviour, "good"}
    assert time.monotonic() - begun < 5  # it does not wait for a server that has fallen silent


@pytest.mark.parametrize("behaviour", HOPELESS)
def test_a_hopeless_mirror_is_followed_by_the_next(server, behaviour):
    assert fetched(download("cifar10", mirrors=[server.url(behaviour), server.url("good")], quiet=True))
    assert server.log[-1][0] == "good"


@pytest.mark.parametrize("behaviour", HOPELESS)
def test_no_mirror_left_gives_one_sentence_and_nothing_half_written(server, behaviour, tmp_path):
    with pytest.raises(UserError, match=HOPELESS[behaviour]) as caught:
        download("cifar10", mirrors=[server.url(behaviour)], quiet=True)
    assert "\n" not in str(caught.value)
    assert "404" in str(caught.value)  # of the official one, which came last
    assert {path.name for path in tmp_path.iterdir()} == {".lock", f"{FILE}.part"}


def test_a_cut_download_is_resumed_and_not_repeated(server):
    download("cifar10", mirrors=[server.url("cut")], quiet=True)
    quarter = len(server.content) // 4 + 1
    assert server.log == [("cut", i * quarter) for i in range(4)]


def test_another_process_and_another_mirror_go_on_from_what_arrived(server, tmp_path, monkeypatch):
    half = len(server.content) // 2
    (tmp_path / f"{FILE}.part").write_bytes(server.content[:half])
    monkeypatch.setenv("TINYRES_MIRRORS", f"{server.url('missing')}  {server.url('good')}/")
    assert fetched(download("cifar10", quiet=True))
    assert server.log == [("missing", half), ("good", half)]


@pytest.mark.parametrize("behaviour", ["good", "no_range"])
@pytest.mark.parametrize("length", [0.3, 1, 1.2])
def test_a_partial_file_that_is_rotten_is_replaced(server, tmp_path, behaviour, length):
    (tmp_path / f"{FILE}.part").write_bytes(b"x" * int(len(server.content) * length))
    assert fetched(download("cifar10", mirrors=[server.url(behaviour)], quiet=True))


def test_a_complete_partial_file_needs_no_network(server, tmp_path):
    (tmp_path / f"{FILE}.part").write_bytes(server.content)
    assert fetched(download("cifar10", quiet=True))
    assert server.log == []


def test_an_archive_put_there_by_hand_is_used_and_kept(server, tmp_path):
    (tmp_path / FILE).write_bytes(server.content)
    assert download("cifar10", quiet=True) == tmp_path / FOLDER
    assert server.log == []
    assert (tmp_path / FILE).read_bytes() == server.content


def test_another_archive_under_that_name_is_not(server, tmp_path):
    (tmp_path / FILE).write_bytes(bytes(len(server.content)))
    assert fetched(download("cifar10", mirrors=[server.url("good")], quiet=True))


def test_what_is_there_is_not_fetched_again(server):
    for _ in range(2):
        download("cifar10", mirrors=[server.url("good")], quiet=True)
    assert len(server.log) == 1


def test_an_empty_folder_is_filled(server, tmp_path):
    (tmp_path / FOLDER).mkdir()
    assert fetched(download("cifar10", mirrors=[server.url("good")], quiet=True))


def test_a_folder_that_lacks_files_gets_them_and_keeps_its_own(server, tmp_path):
    folder = download("cifar10", mirrors=[server.url("good")], quiet=True)
    (folder / "data_batch_2").unlink()
    (folder / "notes.txt").write_text("mine")
    kept = (folder / "data_batch_1").stat().st_mtime_ns
    assert fetched(download("cifar10", mirrors=[server.url("good")], quiet=True))
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "data_batch_1").stat().st_mtime_ns == kept


def test_what_is_there_but_is_something_else_is_refused_and_kept(server, tmp_path, capsys):
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"something else")
    for _ in range(2):  # the first time files are missing, the second time none
        assert run(["cifar10", "--mirror", server.url("good")]) == 2
        error = capsys.readouterr().err
        assert "test_batch" in error
        assert error.splitlines()[-1].startswith("error: ")
        assert (folder / "test_batch").read_bytes() == b"something else"
    (folder / "test_batch").write_bytes((folder / "data_batch_1").read_bytes())
    with pytest.raises(UserError, match="test_batch"):
        download("cifar10", quiet=True)


@pytest.mark.parametrize("make", [lambda path: path.touch(), lambda path: path.symlink_to("nowhere")])
def test_a_file_of_the_folder_s_name(server, tmp_path, make):
    make(tmp_path / FOLDER)
    with pytest.raises(UserError, match="is not a folder"):
        download("cifar10", mirrors=[server.url("good")], quiet=True)


def test_the_folder_itself_may_be_named(server, tmp_path, monkeypatch):
    folder = download("cifar10", mirrors=[server.url("good")], quiet=True)
    monkeypatch.chdir(folder)
    assert download("cifar10", ".", quiet=True).resolve() == folder
    assert not (folder / FOLDER).exists()


def test_files_that_are_not_the_published_ones_are_named(server, tmp_path, capsys):
    assert main(["cifar10", "--mirror", server.url("good")]) == 0
    assert "data_batch_1, data_batch_2" in capsys.readouterr().out


def run(arguments) -> int:
    """Run the command as a script does."""
    with pytest.raises(SystemExit) as caught:
        exit_with_one_sentence(lambda: main(arguments))
    return caught.value.code


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://127.0.0.1", "nonsense", "http://[", "http://a:b"])
def test_strange_addresses(server, mirror):
    with pytest.raises(UserError, match="could not be downloaded"):
        download("cifar10", mirrors=[mirror], quiet=True)


def test_a_full_disk(server, tmp_path, monkeypatch):
    (tmp_path / f"{FILE}.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        download("cifar10", mirrors=[server.url("good")], quiet=True)


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        download("cifar10", tmp_path / "file", quiet=True)


@pytest.mark.parametrize("wrong", [{"name": "imagenet"}, {"name": "cifar10", "layout": "matlab"}])
def test_unknown_names(wrong):
    with pytest.raises(UserError, match=r"cifar10, cifar100, in layout python or binary"):
        download(**wrong)


def test_the_command(server, tmp_path, capsys):
    assert (
        main(["cifar10", "--mirror", server.url("good"), "--data-dir", str(tmp_path / "deep" / "there")]) == 0
    )
    assert str(tmp_path / "deep" / "there" / FOLDER) in capsys.readouterr().out


def test_ctrl_c_keeps_what_arrived(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tinyres.data.download, "_bar", lambda *_: Interrupted())
    assert main(["cifar10", "--mirror", server.url("good")]) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert (tmp_path / f"{FILE}.part").read_bytes() == server.content[:1000]


class Interrupted:
    """A progress bar at whose first step somebody presses Ctrl-C."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n):
        raise KeyboardInterrupt


def test_the_module_can_be_run():
    command = [sys.executable, "-W", "error", "-m", "tinyres.data.download", "imagenet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no 'imagenet'")
    assert done.stderr.count("\n") == 1


def test_the_official_numbers():
    assert {key: archive.md5 for key, archive in ARCHIVES.items()} == {
        ("cifar10", "python"): "c58f30108f718f92721af3b95e74349a",
        ("cifar10", "binary"): "c32a1d4ab5d03f1284b67883e8d87530",
        ("cifar100", "python"): "eb9058c3a382ffc7106e4002c42a8d85",
        ("cifar100", "binary"): "03b5dce01913d631647c71ecec9e9cb8",
    }
    assert tinyres.data.download.OFFICIAL == "https://www.cs.toronto.edu/~kriz"


def archive_with(path, *members):
    """Write an archive of members, each a TarInfo with the content of its file."""
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def member(name, **attributes):
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


HOSTILE = {
    "outside": member("inside/../../escaped"),
    "absolute": member("/tmp/escaped"),
    "beside": member("beside/escaped"),
    "not in a folder": member("escaped"),
    "no name": member(""),
    "the folder as a file": member("inside"),
    "symbolic link": member("inside/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "symbolic link for the folder": member("inside", type=tarfile.SYMTYPE, linkname=".."),
    "hard link": member("inside/link", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device": member("inside/device", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "pipe": member("inside/pipe", type=tarfile.FIFOTYPE),
    "twice": member("inside/good"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_leaves_nothing_behind(tmp_path, case):
    target = tmp_path / "target"
    target.mkdir()
    good = (member("inside/good"), b"good")
    archive = archive_with(tmp_path / "a.tar.gz", good, (HOSTILE[case], b""))
    with pytest.raises(UserError):
        unpack(archive, target / "inside")
    assert list(target.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "target"}


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) * 9 // 10], lambda b: b[: len(b) // 2], lambda b: b"no", lambda b: b""]
)
def test_a_damaged_archive_leaves_nothing_behind(tmp_path, damage, content):
    (tmp_path / "a.tar.gz").write_bytes(damage(content))
    with pytest.raises(UserError, match=r"archive|unpack"):
        unpack(tmp_path / "a.tar.gz", tmp_path / FOLDER)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_an_honest_archive_with_folders_in_it(tmp_path):
    members = (member("./inside", type=tarfile.DIRTYPE), b""), (member("./inside/deep/file"), b"content")
    (tmp_path / ".inside.tmp").mkdir()  # left by a killed process
    unpack(archive_with(tmp_path / "a.tar.gz", *members), tmp_path / "inside")
    assert (tmp_path / "inside" / "deep" / "file").read_bytes() == b"content"
    assert not (tmp_path / ".inside.tmp").exists()
