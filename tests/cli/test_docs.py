"""Man pages and completion: every row of every table is in them, and the tools take them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from xendpy import config
from xendpy.cli import commands, docs, xend

PAGES = docs.pages()
MAN = [name for name in PAGES if name.startswith("man/")]


def plain(page: str) -> str:
    return page.replace("\\-", "-").replace("\\e", "\\")


@pytest.mark.parametrize("row", [row for _, row, _ in config.options()], ids=lambda row: row.name)
def test_every_option_is_in_the_manual(row: config.Option) -> None:
    page = plain(PAGES["man/man5/xend-config.sxp.5"])
    assert f"\\fB{row.name}\\fR\n{row.doc} Default: " in page.replace("\\&", "")


@pytest.mark.parametrize("row", commands.COMMANDS.values(), ids=lambda row: row.name)
def test_every_subcommand_is_in_the_manual_and_completed(row: commands.Command) -> None:
    assert f"\\fB{row.name}\\fR {row.args}".rstrip() in plain(PAGES["man/man1/xm.1"])
    assert f" {row.name} " in PAGES["bash-completion/completions/xm"]


@pytest.mark.parametrize("form", [form for form, _ in config.REPEATED])
def test_every_row_is_in_the_manual(form: str) -> None:
    assert f"\n\\fB({form})\\fR\n" in plain(PAGES["man/man5/xend-config.sxp.5"])


@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("man8/xend.8", xend.EXIT_CODES),
        ("man8/xend.8", xend.ENVIRONMENT),
        ("man1/xm.1", commands.EXIT_CODES),
        ("man1/xm.1", commands.ENVIRONMENT),
    ],
)
def test_exit_status_and_environment_are_in_the_manual(
    page: str, table: tuple[tuple[object, str], ...]
) -> None:
    text = plain(PAGES[f"man/{page}"])
    assert [term for term, said in table if f"\\fB{term}\\fR\n{said}\n" not in text] == []


@pytest.mark.parametrize("name", xend.COMMANDS)
def test_every_command_of_xend_is_in_the_manual(name: str) -> None:
    assert f".TP\n\\fB{name}\\fR\n" in plain(PAGES["man/man8/xend.8"])


@pytest.mark.parametrize("name", MAN)
@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
def test_groff_has_nothing_to_say(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z"],
        input=PAGES[name],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (("xm", "insp"), {"inspect"}),
        (("xm", "inspect", "--rec"), {"--records"}),
        (("xm", "--root", "/tmp/x", "extr"), {"extract"}),
        (("xend", "check-c"), {"check-config"}),
        (("xend", "--fore"), {"--foreground"}),
    ],
    ids=" ".join,
)
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes(line: tuple[str, ...], offered: set[str], tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(PAGES[f"bash-completion/completions/{line[0]}"])
    words = " ".join(line)
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'source "$0"; COMP_WORDS=({words}); COMP_CWORD={len(line) - 1};'
            f' _{line[0]}; printf "%s\\n" "${{COMPREPLY[@]}}"',
            str(script),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert set(done.stdout.split()) == offered


def test_files_are_written_below_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["docs", str(tmp_path)])
    assert docs.main() == 0
    for name, content in PAGES.items():
        assert (tmp_path / name).read_text() == content
