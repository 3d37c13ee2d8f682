"""What the package never does with files of strangers, read from its source."""

import ast
from pathlib import Path

import pytest

import spanbert_ext

SOURCES = sorted(Path(spanbert_ext.__file__).parent.rglob("*.py"))
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
}
# Keyword -> the only value it may have.
FORCED_KEYWORDS = {"weights_only": True, "trust_remote_code": False, "shell": False}


def faults(source):
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: {name}")
        keywords = {k.arg: k.value for k in node.keywords}
        for key, wanted in FORCED_KEYWORDS.items():
            if (name.split(".")[0], key) == ("checkpoint", "weights_only"):
                continue  # our own: whether a checkpoint's moments may be missing
            value = keywords.get(key)
            if value is not None and ast.unparse(value) != str(wanted):
                found.append(f"{node.lineno}: {key}={ast.unparse(value)}")
        if name == "torch.load" and "weights_only" not in keywords:
            found.append(f"{node.lineno}: torch.load without weights_only")
        if name.split(".")[-1] in ("extract", "extractall") and "filter" not in keywords:
            found.append(f"{node.lineno}: {name} without filter")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_code_of_strangers_is_run(path):
    assert faults(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f, weights_only=False)",
        "torch.load(f)",
        "pickle.load(f)",
        "yaml.load(f, Loader=yaml.SafeLoader)",
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "subprocess.run('ls', shell=True)",
        "tar.extractall(p)",
    ],
)
def test_the_scan_sees_each(line):
    assert len(faults(line)) == 1


def test_the_scan_reads_the_package():
    assert {"command.py", "archives.py", "sources.py"} <= {path.name for path in SOURCES}
