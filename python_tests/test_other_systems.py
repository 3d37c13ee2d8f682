"""The package where POSIX or Linux is missing: in a process that has lost what Windows and macOS do
not have, every module imports, text becomes a corpus, and files are locked.
"""

import signal

from strategies import run_python

CODE = """
import builtins, ctypes, importlib, io, os, pathlib, pkgutil, signal, sys, types

# What others need of this system they have taken before it goes.
import datatrove, fcntl, torch, torch.distributed.checkpoint, tqdm, yaml
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertForPreTraining

POSIX_ONLY = {"fcntl", "resource", "termios", "pwd", "grp", "posix", "syslog", "pty", "tty"}
plain_import = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    if name in POSIX_ONLY and (globals or {}).get("__name__", "").startswith("spanbert_ext"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return plain_import(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
for name in ("sched_getaffinity", "getloadavg", "sysconf", "killpg", "getpgid", "nice",
             "O_DIRECTORY", "O_CLOEXEC", "getuid", "posix_fadvise", "posix_fallocate"):
    delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "pthread_sigmask"):
    delattr(signal, name)
sys.platform = "darwin"
ctypes.CDLL = None  # macOS and Windows have no prctl

def locking(handle, mode, count):
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None

sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)

import spanbert_ext
for found in pkgutil.walk_packages(spanbert_ext.__path__, "spanbert_ext."):
    if not found.name.endswith(("__main__", "._C")):
        importlib.import_module(found.name)

from spanbert_ext import files
from spanbert_ext.cli import doctor
from spanbert_ext.data.config import PrepareConfig
from spanbert_ext.data.preparation import prepare
from spanbert_ext.errors import ConfigError
from spanbert_ext.tasks.predict_files import OutputFiles
from spanbert_ext.training import checkpoint
from spanbert_ext.training.run_directory import RunDirectory

work = pathlib.Path(os.environ["WORK"])
for name in ("a", "b"):
    (work / f"{name}.txt").write_text(f"some words of file {name}\\n" * 20)
texts = [str(work / "a.txt"), str(work / "b.txt")]
config = PrepareConfig(texts, str(work / "corpus"), vocab_size=64, workers=2, unit_bytes=300)
corpus = prepare(config)
assert corpus.sidecar["inputs"] and not (work / ".corpus.staging").exists()

def refused(take):
    try:
        take()
    except ConfigError as error:
        return str(error)
    raise AssertionError("it was not refused")

with RunDirectory(work):
    assert f"in use by pid {os.getpid()}" in refused(lambda: RunDirectory(work))
with OutputFiles(work / "out", None):
    assert "is writing it" in refused(lambda: OutputFiles(work / "out", None))
files.write_text(work / "small", "text")
assert len(doctor.report()) > 100

from spanbert_ext.data import worker
worker.Job.open = lambda path: None
sys.argv[1:] = [str(work), "1"]  # not the parent, which only Linux has to know
sys.stdin = io.StringIO("")
worker.main()
print(sorted(os.listdir(work)), file=sys.stderr)
os.environ["SPANBERT_EXT_FAIL_POINT"] = "last"
del signal.SIGKILL  # not before: here, subprocess needs it
checkpoint.fail_point("last")
"""


def test_without_what_only_posix_and_linux_have(tmp_path):
    child = run_python(CODE, WORK=str(tmp_path))
    assert child.returncode == -signal.SIGTERM, child.stderr  # the last fault point was reached
    left = ["a.txt", "b.txt", "corpus", ".lock", "small"]
    assert str(sorted(left)) in child.stderr
