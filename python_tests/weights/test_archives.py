"""Archives and pickles of strangers: what is unpacked or read, and what is refused unexecuted."""

import argparse
import gzip
import io
import os
import resource
import tarfile

import pytest
import torch
from original_files import fairseq_weights, write_encoder, write_fairseq

from spanbert_ext.errors import DataError, StorageError
from spanbert_ext.weights import archives
from spanbert_ext.weights.archives import read_tensors, unpack
from spanbert_ext.weights.sources import open_start, read_start


def member(name, content=b"x", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write_tar(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    return tmp_path / "outer" / "inner"


@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tar", "w")])
def test_files_and_directories_are_unpacked(tmp_path, folder, name, mode):
    directory = member("base", b"", type=tarfile.DIRTYPE, mode=0o755)
    path = write_tar(tmp_path / name, directory, member("base/config.json", b"{}"), mode=mode)
    unpack(path, folder)
    assert (folder / "base" / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("../escaped"), "outside the destination"),
        (member("base/../../escaped"), "outside the destination"),
        (member("/tmp/escaped"), "has an absolute path"),
        (member("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "neither a plain file"),
        (member("link", b"", type=tarfile.LNKTYPE, linkname="good"), "neither a plain file"),
        (member("null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "neither a plain"),
        (member("pipe", b"", type=tarfile.FIFOTYPE), "neither a plain file"),
    ],
)
def test_members_that_lead_elsewhere(tmp_path, folder, bad, message):
    path = write_tar(tmp_path / "a.tar.gz", member("good"), bad)
    with pytest.raises(DataError, match=f"a.tar.gz: refused: .*{message}"):
        unpack(path, folder)
    assert sorted(os.listdir(folder)) == ["good"]
    assert os.listdir(tmp_path / "outer") == ["inner"]


def test_too_many_members(tmp_path, folder):
    path = write_tar(tmp_path / "a.tar.gz", *(member(f"f{i}") for i in range(101)))
    with pytest.raises(DataError, match="more than 100 members"):
        unpack(path, folder)


def test_a_bomb_is_refused_at_its_header(tmp_path, folder):
    """A header that announces 10^12 bytes; none of them is written."""
    info = tarfile.TarInfo("model.pt")
    info.size = 10**12
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf() + bytes(1 << 20))
    with pytest.raises(DataError, match="member 'model.pt' of 1000.0 GB: at most 16 GB"):
        unpack(tmp_path / "a.tar.gz", folder)
    assert os.listdir(folder) == []


def test_many_small_parts_of_a_bomb(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    path = write_tar(tmp_path / "a.tar.gz", *(member(f"f{i}", bytes(300)) for i in range(5)))
    with pytest.raises(DataError, match="refused at member 'f3'"):
        unpack(path, folder)


def test_a_header_that_would_fill_the_memory(tmp_path, folder):
    """An extended header of half a gigabyte, which tarfile would read whole."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 29
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(1 << 9):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="a header of 536870912 bytes"):
        unpack(tmp_path / "a.tar.gz", folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8bno gzip"])
def test_what_is_no_archive(tmp_path, folder, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match="not a whole tar archive"):
        unpack(tmp_path / "a.tar.gz", folder)


def test_a_truncated_archive(tmp_path, folder):
    path = write_tar(tmp_path / "a.tar.gz", member("f", os.urandom(5000)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="not a whole tar archive"):
        unpack(path, folder)


def test_a_folder_that_cannot_be_written(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", member("f"))
    with pytest.raises(StorageError, match="could not be unpacked"):
        unpack(path, tmp_path / "absent")


def test_an_archive_with_two_models(tmp_path):
    names = ("a/config.json", "b/model.pt")
    path = write_tar(tmp_path / "a.tgz", *(member(name) for name in names))
    with pytest.raises(DataError, match="2 models in the archive"), open_start(str(path)):
        pass


class Probe:
    """Makes a file when it is unpickled by a loader that runs code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_with_code_is_not_run(tmp_path):
    """As weights of a directory, of an original archive and of a fairseq checkpoint; the probe
    works.
    """
    marker = tmp_path / "ran"
    write_encoder(tmp_path / "original")
    write_encoder(tmp_path / "bert", model_type="bert")
    for name in ("original", "bert"):
        torch.save({"x": Probe(marker)}, tmp_path / name / "pytorch_model.bin")
    write_fairseq(tmp_path / "model.pt", extra_state=Probe(marker))
    for name in ("original", "bert", "model.pt"):
        with (
            pytest.raises(DataError, match=r"GLOBAL posix.mkdir.*none of it was run") as caught,
            open_start(str(tmp_path / name)) as start,
        ):
            read_start(start)
        assert "weights_only" not in str(caught.value)  # no advice to run it after all
        assert not marker.exists()
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert marker.exists()


def test_options_of_fairseq_are_the_only_class(tmp_path):
    path = write_fairseq(tmp_path / "model.pt")
    assert read_tensors(path, "model").keys() == fairseq_weights().keys()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ([torch.zeros(2)], None, "a dict of tensors by name is expected in it"),
        ({"a": 3}, None, "a dict of tensors by name"),
        ({"a": torch.zeros(2)}, "model", "is expected under 'model'"),
        ({"model": torch.zeros(2)}, "model", "is expected under 'model'"),
        ({"model": {3: torch.zeros(2)}}, "model", "is expected under 'model'"),
    ],
)
def test_pickles_of_something_else(tmp_path, content, key, message):
    torch.save(content, tmp_path / "f.pt")
    with pytest.raises(DataError, match=message):
        read_tensors(tmp_path / "f.pt", key)


@pytest.mark.parametrize("size", [0, 10, 3000, -10])
def test_a_truncated_pickle(tmp_path, size):
    path = write_fairseq(tmp_path / "model.pt")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="not a whole file|damaged"):
        read_tensors(path, "model")
