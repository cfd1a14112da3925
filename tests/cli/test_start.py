"""What the command line says before any work: wrong words, missing files, help; and to whom it prints."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from sharpmask.cli import main, train

Capture = pytest.CaptureFixture[str]

PROBE = """
import sys
from sharpmask.cli import main, train
status = None
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
finally:
    slow = [name for name in ("torch", "torchvision", "matplotlib", "skimage", "scipy") if name in sys.modules]
    print("PROBE", status, slow)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "joint", "--help"], 0),
        (["propose", "--wrong"], 2),
        (["propose", "missing.jpg"], 2),
        (["propose", "empty"], 2),
        (["propose", __file__, "--checkpoint", "missing"], 2),
        (["eval", "--dataset", "missing"], 2),
        (["eval", "--dataset", ".", "--results", "missing"], 2),
        (["eval", "--dataset", ".", "--top-n", "many"], 2),
        (["train", "joint", "--dataset", "missing", "--out", "x"], 2),
        (["train", "joint", "--dataset", ".", "--out", "file/x"], 2),
        (["train", "joint", "--dataset", ".", "--out", "x", "--trunk-weights", "missing"], 2),
        (["eval", "--dataset", ".", "--out", "file/x"], 2),
        (["results", "missing"], 2),
        (["convert", "missing", "x"], 2),
        (["pack", "missing", "x"], 2),
        (["app", "--checkpoint", "missing"], 2),
        (["app", "--port", "65536"], 2),
        (["demo", "--out", "file"], 2),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_before_pytorch_is_imported(arguments: list[str], status: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    ended = subprocess.run([sys.executable, "-c", PROBE, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == f"PROBE {status} []", ended.stderr
    assert (ended.stderr == "") == (status == 0) and "Traceback" not in ended.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file"], "nothing is made"


def test_settings_need_no_pytorch() -> None:
    program = """
import sys
import sharpmask
from sharpmask import ModelConfig, SearchConfig
from sharpmask.models import ModelConfig as Same
from sharpmask.training import TrainConfig, stage_defaults
from sharpmask.cli import options
assert ModelConfig is Same and sharpmask.__version__
assert "torch" not in sys.modules
assert sharpmask.models.SharpMask and "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_fine_tuning_has_defaults_of_its_own(tmp_path: Path) -> None:
    places = ["--dataset", "data", "--out", "run"]
    plain, tuned = train.parse("joint", places), train.parse("joint", [*places, "--from", "small"])
    assert (plain.steps, plain.lr, plain.validate_every) == (5000, 1e-3, 8000)
    assert (tuned.steps, tuned.lr, tuned.validate_every) == (400, 3e-4, 100)
    assert tuned.clip == plain.clip == 5 and tuned == train.parse("joint", [*places, "--from=small"])
    (tmp_path / "run.yaml").write_text("start_from: small\nlr: 0.002\n")
    given = train.parse("joint", [*places, "--config", str(tmp_path / "run.yaml"), "--steps", "7"])
    assert (given.steps, given.lr, given.ema, given.start_from) == (7, 0.002, 0.99, Path("small"))
    assert train.parse("sharpmask", [*places, "--from", "small"]).steps == train.parse("sharpmask", places).steps


def test_every_lazy_name_is_there() -> None:
    import sharpmask
    import sharpmask.models
    import sharpmask.training

    for package in (sharpmask, sharpmask.models, sharpmask.training):
        assert all(hasattr(package, name) for name in package.__all__)
        with pytest.raises(AttributeError):
            _ = package.no_such_name


def test_the_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"sharpmask {version('sharpmask')}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("results x --out y --to csv", "--to'. Expected one of ('coco', 'labelme', 'yolo', 'parquet')."),
        ("results x --out y --to None", "--to'. Expected one of ('coco', 'labelme', 'yolo', 'parquet')."),
        ("propose x --soft-nms x", "--soft-nms'. Expected one of ('True', 'False')."),
        ("propose x --scales x", "Error parsing --scales: Could not find valid parse for arguments: ['x'] "),
        ("results x --top x", "Error parsing --top: invalid literal for int() with base 10: 'x' "),
    ],
)
def test_none_is_no_value_of_an_option(words: str, said: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split()) + " "


@pytest.mark.parametrize(
    ("words", "meant"),
    [("propse x.jpg", "propose"), ("evaluate", "eval"), ("train jiont", "train joint"), ("trian joint", "train joint")],
)
def test_a_slip_gets_a_suggestion(words: str, meant: str, capsys: Capture) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err.endswith(f"; did you mean {meant!r}?\n")
    assert main(["zzz"]) == 2
    assert "mean" not in capsys.readouterr().err


def test_paths_are_checked_by_name(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()

    def said(*arguments: object) -> str:
        assert main([str(a) for a in arguments]) == 2
        return capsys.readouterr().err

    assert "images: no file or folder" in said("propose", tmp_path / "a.jpg")
    assert f"out: {tmp_path}/file/x cannot be made" in said("demo", "--out", tmp_path / "file" / "x")
    assert f"out: {tmp_path}/file must be a folder" in said("demo", "--out", tmp_path / "file")
    assert f"out: {tmp_path} must be a file" in said("pack", tmp_path / "file", tmp_path)
    (tmp_path / "x").symlink_to(tmp_path / "nowhere")
    assert "out: " in said("demo", "--out", tmp_path / "x")
    long = tmp_path / ("x" * 300)
    assert "File name too long" in said("demo", "--out", long)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("eval --dataset . --annotations", "annotations"),
        ("propose file --checkpoint", "checkpoint"),
        ("train joint --dataset . --out x --from", "--from"),
        ("train joint --dataset . --out x --trunk-weights", "trunk_weights"),
        ("train joint --dataset . --out x --validation . --validation-annotations", "validation_annotations"),
    ],
)
def test_a_file_to_read_is_called_as_it_was_asked_for(
    arguments: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "base").mkdir()
    said = {"nope": "no file nope", ".": ". must be a file, but it is a folder"}
    if what in ("checkpoint", "--from"):
        said["nope"] += "; models by name are small, base"
        said["base"] = "base is a model of this package, and the working folder has base too"
    for value, error in said.items():
        assert main([*arguments.split(), value]) == 2
        assert capsys.readouterr().err.startswith(f"sharpmask: {what}: {error}")


def test_a_file_in_place_of_a_folder_is_told(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()
    assert main(["eval", "--dataset", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"sharpmask: dataset: {tmp_path}/file must be a folder, but it is a file\n"


@pytest.mark.parametrize("module", ["sharpmask.cli.output", "sharpmask.cli.options", "torch", "sharpmask.search"])
def test_an_interrupt_during_imports_is_one_line(module: str, tmp_path: Path) -> None:
    """The process interrupts itself when it comes to the import of ``module``."""
    program = f"""
import builtins, os, signal, sys
real = builtins.__import__
def importing(name, globals=None, locals=None, fromlist=(), level=0):
    package = (globals or {{}}).get("__package__") or ""
    whole = ".".join([*package.split(".")[: len(package.split(".")) - level + 1], name]) if level else name
    if whole == {module!r}:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            real("time").sleep(10)
        except BaseException:
            pass  # as modules do that have an alternative
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = importing
from sharpmask.cli import main, train
sys.argv[1:] = ["propose", {__file__!r}]
sys.exit(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "sharpmask: interrupted\n")


def test_an_ignored_interrupt_stays_ignored() -> None:
    """A shell ignores Ctrl-C for what it starts in the background."""
    program = """
import os, signal
from sharpmask.cli.interrupts import interrupts_end_the_program
signal.signal(signal.SIGINT, signal.SIG_IGN)
with interrupts_end_the_program():
    os.kill(os.getpid(), signal.SIGINT)
assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
signal.signal(signal.SIGINT, signal.default_int_handler)
for alone in (True, False):
    with interrupts_end_the_program(alone):
        assert (signal.getsignal(signal.SIGINT) is signal.default_int_handler) != alone
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# To whom it prints.

TALK = """
import sys
from sharpmask.cli.output import say, show, steady_output, tell_error
from rich.table import Table
failures = []
with steady_output(failures):
    table = Table("é – ×")
    table.add_row("café")
    for _ in range(int(sys.argv[1])):
        show(table)
        say("naïve \\udcff.jpg")
        print("café")
    tell_error("ärger")
    with open("work", "w") as file:
        file.write("done")
print(len(failures), file=sys.stderr)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_any_encoding_will_do(encoding: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    ended = subprocess.run(
        [sys.executable, "-c", TALK, "1"], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    assert "café".encode(encoding, "backslashreplace") in ended.stdout
    assert "ärger".encode(encoding, "backslashreplace") in ended.stderr
    assert (tmp_path / "work").read_text() == "done" and ended.stderr.endswith(b"0\n")


@pytest.mark.parametrize("lines", [1, 3000])
def test_a_closed_pipe_ends_no_work(lines: int, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", TALK, str(lines)], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert ended.returncode == 0 and (tmp_path / "work").read_text() == "done"
    assert ended.stderr.splitlines()[-1] == "0" and "Error" not in ended.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_output_that_cannot_be_written_is_an_error_of_its_own(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        work = [sys.executable, "-c", TALK, "1"]
        ended = subprocess.run(work, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
        assert (tmp_path / "work").read_text() == "done" and ended.stderr.splitlines()[-1] == "1"
        program = [sys.executable, "-m", "sharpmask.cli", "--help"]
        ended = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.stderr == "sharpmask: the output cannot be written: No space left on device\n"
    assert ended.returncode == 2


def test_an_interrupt_at_work_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("sharpmask.cli.program.prepare", lambda _: interrupted)
    for words in (["synth", "x"], ["propose", "a.jpg", "--json"], ["eval", "--dataset", "x", "--results=y"]):
        assert main(words) == 130
        assert capsys.readouterr().err == "sharpmask: interrupted\n"


@pytest.mark.parametrize(
    "given, told",
    [
        (["propose", "a  b.jpg", "--out", "c"], "sharpmask propose 'a  b.jpg' --out c --resume"),
        (["propose", "a.jpg", "--resume"], "sharpmask propose a.jpg --resume"),
        (["eval", "--dataset", "x"], "sharpmask eval --dataset x --resume"),
        (["propose", "a\nb.jpg"], "the same command with --resume"),
    ],
)
def test_an_interrupt_tells_how_to_go_on(
    given: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("sharpmask.cli.program.prepare", lambda _: lambda: signal.raise_signal(signal.SIGINT))
    assert main(given) == 130
    said = capsys.readouterr().err
    assert said == f"sharpmask: interrupted; what was finished is kept, and this goes on: {told}\n"


@pytest.mark.parametrize("saved", [False, True])
def test_an_interrupted_training_tells_how_to_go_on(
    saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sharpmask.training.train", lambda *_: signal.raise_signal(signal.SIGINT))
    for folder in ("data", "my run"):
        (tmp_path / folder).mkdir()
    if saved:
        (tmp_path / "my run" / "state.safetensors").touch()
    assert main(["train", "joint", "--dataset", "data", "--out", "my run"]) == 130
    how = "; what was saved is kept, and this goes on: sharpmask train joint --config 'my run/config.yaml' --resume"
    assert capsys.readouterr().err == f"sharpmask: interrupted{how if saved else ''}\n"


def test_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def hungry() -> int:
        raise MemoryError

    monkeypatch.setattr("sharpmask.cli.program.prepare", lambda _: hungry)
    assert main(["x"]) == 2
    assert capsys.readouterr().err == "sharpmask: out of memory\n"
