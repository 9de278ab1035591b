"""What lint cannot hold: documented methods, arguments by position, no names of our own for papers, the table of arrows."""

import ast
import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import pfungst

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "pfungst").rglob("*.py"))
NAMES = [str(p.relative_to(ROOT / "src" / "pfungst")) for p in SOURCES]

# To be made true and removed.
PAPERS = re.compile(r"spurious/|audit/classifier/")
BARE = re.compile(
    r"pfungst\.(anomaly|audit|encoders|features|probes|relevance\.(bases|engine|program)|report|similarity|spurious)\b"
)
MANY = {
    "_artefacts", "_picture", "scale_norm", "train_small",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_papers_have_their_names(name):
    if not PAPERS.match(name):
        text = (ROOT / "src" / "pfungst" / name).read_text(encoding="utf-8")
        found = re.findall(r"(?i)paper ?00\d", text)
        assert not found


def modules():
    for module in pkgutil.walk_packages(pfungst.__path__, "pfungst."):
        if not module.name.endswith("__main__"):
            yield importlib.import_module(module.name)


def test_public_methods_say_what_they_do():
    """A method that overrides one with a docstring has that one."""
    bare = []
    for module in modules():
        for cls in (
            c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__
        ):
            for name, member in vars(cls).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                public = not name.startswith("_") and not cls.__name__.startswith("_")
                if public and inspect.isfunction(function) and not inspect.getdoc(getattr(cls, name)):
                    bare.append(f"{module.__name__}.{cls.__name__}.{name}")
    assert not [name for name in bare if not BARE.match(name)]


def positional(node):
    known = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    return len(known) - (known[:1] in (["self"], ["cls"]))


def test_functions_take_few_arguments_by_position():
    many = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {f: c.name for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for f in c.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and positional(node) > 8:
                many.add(f"{inside[node]}.{node.name}" if node in inside else node.name)
    assert many <= MANY


def test_the_import_contract_is_the_table_of_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \|.*\|.*\|$", text, re.MULTILINE)
    table = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w./]+)`", row)}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if "pfungst.cli" in c.get("layers", ()))
    held = {re.sub("^pfungst[.]", "", n) for layer in layers for n in re.split(" [|:] ", layer)}
    there = {p.name for p in (ROOT / "src" / "pfungst").iterdir() if (p / "__init__.py").is_file()}
    assert there <= table
    assert there <= held
    files = {p.name for p in (ROOT / "src" / "pfungst").glob("[!_]*.py")}
    assert files <= table
    assert {f.removesuffix(".py") for f in files} <= held


def test_images_are_opened_in_one_place():
    """Pillow hands a .png with PostScript inside to an interpreter unless told which formats it may hold."""
    found = {
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open")
        if not (path.name == "files.py" and [k.arg for k in node.keywords] == ["formats"])
    }
    assert not found
    assert not [
        p.name
        for p in SOURCES
        if re.search(r"from PIL.Image import|cv2\.imread|read_image\(.*torchvision", p.read_text())
    ]


def test_the_lowest_versions_are_those_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(r for name in extras if name not in ("lint", "docs") for r in extras[name]),
    ]
    bounds = {m[1]: m[2] for r in wanted if (m := re.match(r"([\w.-]+)(?:\[.*?\])?>=([\d.]+)", r))}
    rows = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    assert dict(row.removesuffix(".*").split("==") for row in rows if row[:1] != "#") == bounds


UNIX = re.compile(
    r"\b(os\.(fork|sysconf|sched_getaffinity|getuid|geteuid|killpg|setsid|uname|getloadavg|mkfifo)"
    r"|signal\.SIG(KILL|HUP|USR1|USR2|ALRM|PIPE)|errno\.EDQUOT|/proc/|mallopt|import fcntl|import resource)\b"
)
GUARDED = {
    "threads.py": "sched_getaffinity",  # behind hasattr
    "memory.py": "sysconf|/proc/|mallopt|import resource",  # behind the platform, or in a try
    "files.py": "import fcntl",  # in a try
}


def test_what_only_unix_has_is_asked_for_in_one_place():
    for path in SOURCES:
        found = [m[0] for m in UNIX.finditer(path.read_text(encoding="utf-8"))]
        allowed = GUARDED.get(path.name, "(?!)")
        assert not [f for f in found if not re.search(allowed, f)], path.name


def test_texts_are_read_and_written_in_a_named_encoding():
    """Windows has another one by default."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            texts = [ast.literal_eval(a) for a in node.args if isinstance(a, ast.Constant)]
            texts += [
                k.value.value for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)
            ]
            modes = [t for t in texts if isinstance(t, str) and re.fullmatch(r"[rwaxb+]{1,3}", t)]
            opens = (called == "open" or (name == "open" and modes)) and "b" not in "".join(modes)
            reads = name == "read_text" or (name == "write_text" and called != "write_text")
            if (opens or reads) and not any(k.arg == "encoding" for k in node.keywords):
                found.add(f"{path.name}:{node.lineno}")
    assert not found
