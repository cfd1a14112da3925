"""Shells complete the command line."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sharpmask.cli import main
from sharpmask.cli.completion import SHELLS, completion_script

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "sharpmask.bash"
    path.write_text(completion_script("bash"))
    return path


@pytest.mark.parametrize(
    "line, completed",
    [
        ("pro", ["propose"]),
        ("train ", ["-h", "--help", "deepmask", "joint", "sharpmask"]),
        ("propose --top", ["--top-n"]),
        ("propose a.jpg --geometry rel", ["released", "released-exact"]),
        ("train joint --conf", ["--config"]),
        ("eval --checkpoint pho", ["photo.jpg"]),
        ("propose pho", []),
        ("propose b.jpg pho", []),
    ],
)
def test_bash(line: str, completed: list[str], script: Path, tmp_path: Path) -> None:
    """Where nothing is found, bash completes files, as it is told by ``-o default``."""
    (tmp_path / "photo.jpg").touch()
    words = ["sharpmask", *line.split(" ")]
    program = (
        f"source {shlex.quote(str(script))}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        '_sharpmask_or_files; printf "%s\\n" "${#COMPREPLY[@]}" "${COMPREPLY[@]}"; complete -p sharpmask'
    )
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    count, *found = done.stdout.splitlines()
    assert found.pop() == "complete -o default -F _sharpmask_or_files sharpmask"
    assert int(count) == len(completed) and sorted(filter(None, found)) == sorted(completed)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert "convert-dataset" in said.out and "--top-n" in said.out and said.err == ""
    changed = {"bash": "-o default", "zsh": "or ['__TYRO_COMPLETE_FILES__']", "fish": "\ncomplete --command"}
    assert changed[shell] in said.out  # tyro's script is still the one that is changed to complete files


@pytest.mark.parametrize("words", [["--print-completion", "tcsh"], ["--print-completion"], ["--print-completion=x"]])
def test_an_unknown_shell_is_refused(words: list[str], capsys: Capture) -> None:
    assert main(words) == 2
    assert "--print-completion must be bash, zsh or fish, got" in capsys.readouterr().err
