"""Outputs: whole or not there, together or not at all, and nothing of the user's is lost."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import restobox, restobox_process
from helpers.data import smooth_picture

from export.bundle import check_bundle_free
from quant.files import check_quantized_free
from restoration.io.images import Photo, read_image, write_image
from restoration.io.ultrasound import write_clip
from solvers.files import (
    MARK,
    alone_in,
    check_file,
    check_outputs,
    clear_parts,
    replace_file,
    replace_folder,
    replace_marked_folder,
    together,
)
from solvers.inputs.errors import InputError
from toolbox.api import ZOO


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def text(content: str):
    return lambda path: path.write_text(content)


def fail(path: Path):
    path.write_text("half")
    raise RuntimeError("stopped")


# -- files -----------------------------------------------------------------------------------------


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError, match="stopped"):
        replace_file(tmp_path / "a", fail)
    assert everything(tmp_path) == {"a": b"old"}


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_gets_the_usual(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    (tmp_path / "usual").write_text("")
    for name in "ab":
        replace_file(tmp_path / name, lambda p: (p.touch(0o600), p.write_text("new")))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b", "usual")]
    assert modes[0] == 0o640
    assert modes[1] == modes[2]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    replace_file(tmp_path / "link", text("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_device_is_no_output():
    with pytest.raises(OSError, match="no file"):
        replace_file("/dev/null", text("new"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_protected_file_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o444)
    # the superuser may write it nevertheless
    monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o222))
    for call in (check_file, lambda path: replace_file(path, text("new"))):
        with pytest.raises(PermissionError, match="write-protected"):
            call(tmp_path / "a")
    assert everything(tmp_path) == {"a": b"old"}


def test_together_all_or_nothing(tmp_path):
    def several():
        with together():
            replace_file(tmp_path / "a", text("new a"))
            replace_marked_folder(tmp_path / "folder", lambda p: (p / "x").write_text("x"), "thing")
            replace_file(tmp_path / "b", fail)

    (tmp_path / "a").write_text("old a")
    with pytest.raises(RuntimeError, match="stopped"):
        several()
    assert everything(tmp_path) == {"a": b"old a"}
    with together():
        replace_file(tmp_path / "a", text("new a"))
        replace_file(tmp_path / "b", text("new b"))
        assert (tmp_path / "a").read_text() == "old a"
    assert everything(tmp_path) == {"a": b"new a", "b": b"new b"}


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_a_rename_that_fails_is_undone(tmp_path, monkeypatch, which):
    """Any of the renames of a block may be refused: all of the old content is there again."""
    (tmp_path / "a").write_text("old a")
    replace_marked_folder(tmp_path / "folder", lambda p: (p / "x").write_text("old"), "thing")
    before, real, calls = everything(tmp_path), os.replace, []

    def refuse(a, b):
        calls.append(a)
        if len(calls) == which + 1:
            raise OSError("refused")
        return real(a, b)

    monkeypatch.setattr(os, "replace", refuse)

    def several():
        with together():
            replace_file(tmp_path / "a", text("new a"))
            replace_marked_folder(
                tmp_path / "folder", lambda p: (p / "y").write_text("new"), "thing"
            )
            replace_file(tmp_path / "b", text("new b"))

    with pytest.raises(OSError, match="refused"):
        several()
    assert everything(tmp_path) == before


# -- folders ---------------------------------------------------------------------------------------


def test_a_folder_is_replaced_whole(tmp_path):
    out = tmp_path / "out"
    replace_marked_folder(
        out, lambda p: [(p / f"{k}").write_text("old") for k in range(5)], "thing"
    )
    replace_marked_folder(out, lambda p: (p / "0").write_text("new"), "thing")
    assert {
        name: content for name, content in everything(out).items() if not name.startswith(".")
    } == {"0": b"new"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_other_folders_are_refused(tmp_path, monkeypatch):
    def write(folder):
        replace_marked_folder(folder, lambda p: (p / "x").write_text("new"), "thing")

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"no thing \(it holds thesis\.txt\)"):
        write(mine)
    write(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt beside a thing"):
        write(tmp_path / "out")
    (tmp_path / "link").symlink_to(mine)
    with pytest.raises(FileExistsError, match="link"):
        write(tmp_path / "link")
    inner = tmp_path / "empty" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    for here in (".", "..", inner, inner.parent):
        with pytest.raises(FileExistsError, match="current folder"):
            write(here)
    with pytest.raises(NotADirectoryError):
        write(mine / "thesis.txt")
    assert (mine / "thesis.txt").read_text() == "years of work"
    monkeypatch.chdir(tmp_path)
    write(inner)  # an empty folder is free


def test_what_appears_during_the_swap_stays(tmp_path):
    """A file that somebody else puts into the old folder while the new one is made is not deleted:
    the folder stays as it is.
    """
    out = tmp_path / "out"
    replace_marked_folder(out, lambda p: (p / "x").write_text("old"), "thing")

    def slow(place):
        (place / "x").write_text("new")
        (out / "late.txt").write_text("mine")

    with pytest.raises(FileExistsError, match=r"holds late\.txt beside a thing"):
        replace_marked_folder(out, slow, "thing")
    found = {name: v for name, v in everything(tmp_path).items() if MARK not in name}
    assert found == {"out/x": b"old", "out/late.txt": b"mine"}


@pytest.mark.parametrize("name", ["recipe.json", "bundle.json"])
def test_a_file_of_that_name_makes_no_folder_ours(tmp_path, name):
    (tmp_path / name).write_text("{}")
    (tmp_path / "other").write_text("mine")
    for check in (check_quantized_free, check_bundle_free):
        with pytest.raises(FileExistsError, match=r"other"):
            check(tmp_path)


def test_a_bundle_with_notes_in_it_is_not_replaced(tmp_path):
    import shutil

    shutil.copytree(ZOO / "photo-x4-int8", tmp_path / "bundle")
    listed = {
        *json.loads((tmp_path / "bundle" / "bundle.json").read_text())["files"],
        "bundle.json",
    }
    for path in (tmp_path / "bundle").iterdir():
        if path.name not in listed:
            path.unlink()
    check_bundle_free(tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        check_bundle_free(tmp_path / "bundle")


def test_frames_never_mix_with_others(tmp_path):
    frames = [np.zeros((4, 4), np.float32)] * 3
    write_clip(tmp_path / "clip", iter(frames), 3)
    assert len(write_clip(tmp_path / "clip", iter(frames[:2]), 2)) == 2
    assert sorted(p.name for p in (tmp_path / "clip").glob("*.png")) == [
        "frame_0000.png",
        "frame_0001.png",
    ]
    (tmp_path / "mine").mkdir()
    write_image(tmp_path / "mine" / "frame_0000.png", Photo(smooth_picture(8, 8, 1)))
    before = everything(tmp_path)
    with pytest.raises(FileExistsError):
        write_clip(tmp_path / "mine", iter(frames), 3)
    assert everything(tmp_path) == before


# -- inputs ----------------------------------------------------------------------------------------


def test_outputs_are_never_inputs(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("a")
    (tmp_path / "link.png").symlink_to("in/a.png")
    os.link(tmp_path / "in" / "a.png", tmp_path / "hard.png")
    a = tmp_path / "in" / "a.png"
    for output in (
        a,
        tmp_path / "in" / ".." / "in" / "a.png",
        tmp_path / "link.png",
        tmp_path / "hard.png",
        tmp_path / "in",
    ):
        with pytest.raises(ValueError, match="would be lost"):
            check_outputs([output], [a])
    with pytest.raises(ValueError, match="a file of the input"):
        check_outputs([a], [tmp_path / "in"])
    with pytest.raises(ValueError, match="two outputs"):
        check_outputs([tmp_path / "b", tmp_path / "in" / ".." / "b"])
    check_outputs([tmp_path / "in" / "new.png", None], [a, tmp_path / "in", "random:0.8", None])


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_image(folder / "photo.png", Photo(smooth_picture(32, 32)))
    mask = np.zeros((1, 32, 32), np.float32)
    mask[:, 10:20, 10:20] = 1
    write_image(folder / "mask.png", Photo(mask))
    write_image(folder / "photo-std.png", Photo(smooth_picture(32, 32)))
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        "inpaint photo.png --mask mask.png -o photo.png",
        "inpaint photo.png --mask mask.png -o mask.png",
        "inpaint photo.png --mask mask.png -o new.png --reference photo-std.png -o photo-std.png",
        "inpaint photo.png --mask mask.png -o photo.png -n 2 --std",
        "inpaint photo-std.png --mask mask.png -o photo.png -n 2 --std",
        "denoise photo.png -o photo.png",
        "superresolve photo.png -o photo.png",
        "deblur photo.png --blur 1 -o ./photo.png",
        "dehaze photo.png -o photo.png",
        "ultrasound photo.png -o photo.png",
        "ultrasound . -o .",
        "ultrasound photo.png -o new.png --haze-out new.png",
    ],
)
def test_commands_refuse_to_write_over_inputs(photo, arguments):
    before = everything(photo)
    done = restobox("restore", *arguments.split(), cwd=photo)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert everything(photo) == before


def test_a_process_refuses_in_one_line_too(photo):
    before = everything(photo)
    arguments = ("restore", "inpaint", "photo.png", "--mask", "mask.png", "-o", "photo.png")
    here, there = restobox(*arguments, cwd=photo), restobox_process(*arguments, cwd=photo)
    assert (there.returncode, there.stdout, there.stderr) == (2, "", here.stderr)
    assert len(there.stderr.splitlines()) == 1
    assert everything(photo) == before


def test_training_never_writes_over_a_model(tmp_path, tiny_recipe, pictures):
    out = tmp_path / "model"
    out.mkdir()
    (out / "denoiser.json").write_text("precious")
    done = restobox("train", tiny_recipe, "--data", pictures, "-o", out)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert everything(out) == {"denoiser.json": b"precious"}


# -- signals ---------------------------------------------------------------------------------------

# Ctrl-C is asked for: a shell's background jobs, the tests perhaps among them, ignore it
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
import toolbox.cli
from solvers.files import replace_file, replace_marked_folder, together

def work():
    def write(place):
        target = place / "x" if place.is_dir() else place
        target.write_text("half")
        print("writing", flush=True)
        time.sleep(60)
    with together():
        replace_file(Path(sys.argv[1]) / "first", lambda p: p.write_text("first"))
        if sys.argv[2] == "file":
            replace_file(Path(sys.argv[1]) / "out", write)
        else:
            replace_marked_folder(Path(sys.argv[1]) / "out", write, "thing")

sys.modules["toolbox.cli.main"].app = lambda standalone_mode: work()
sys.exit(toolbox.cli.main())
"""


@pytest.mark.parametrize(
    ("kind", "sent", "code"),
    [
        ("file", signal.SIGTERM, 143),
        pytest.param("folder", signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param("folder", signal.SIGTERM, 143, marks=pytest.mark.long),
        pytest.param("file", signal.SIGINT, 130, marks=pytest.mark.long),
    ],
)
def test_signals_leave_nothing_half_written(tmp_path, kind, sent, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(sent)
    assert process.wait(timeout=120) == code
    assert list(tmp_path.iterdir()) == []


def write_some(place):
    """A file, and a file with a folder that belongs to it."""
    replace_file(place / "alone", text("new"))
    with together():
        replace_file(place / "a", text("new"))
        replace_marked_folder(place / "folder", lambda p: (p / "x").write_text("new"), "thing")


def test_ctrl_c_at_any_line_leaves_nothing(tmp_path):
    """At each line that the room runs, with an earlier output and without: old or new, whole."""
    import solvers.files

    room, lines = Path(solvers.files.__file__).parent, 0

    def traced(at):
        def line(frame, event, _):
            nonlocal lines
            lines += event == "line"
            if event == "line" and lines == at:
                os.kill(os.getpid(), signal.SIGINT)
            return line

        return lambda frame, *_: line if Path(frame.f_code.co_filename).parent == room else None

    def run(place, at):
        nonlocal lines
        lines, before = 0, signal.signal(signal.SIGINT, signal.default_int_handler)
        tracer = sys.gettrace()
        sys.settrace(traced(at))
        try:
            write_some(place)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracer)
            signal.signal(signal.SIGINT, before)

    for there in (False, True):
        states, at, last = set(), 0, 1
        while at <= last:
            place = tmp_path / f"{there}{at}"
            place.mkdir()
            if there:
                write_some(place)
                for path in ("alone", "a", "folder/x"):
                    (place / path).write_text("old")
            run(place, at)
            last = lines if at == 0 else last
            found = {name: v for name, v in everything(place).items() if MARK not in name}
            assert set(found) <= {"alone", "a", "folder/x"}, f"line {at}: {set(found)}"
            pair = found.get("a"), found.get("folder/x")
            assert pair[0] == pair[1], f"line {at}: {found}"
            states.add((found.get("alone"), pair[0]))
            at += 1
        before = b"old" if there else None
        assert last > 100
        assert states == {(before, before), (b"new", before), (b"new", b"new")}


def test_a_killed_process_loses_nothing(tmp_path):
    """SIGKILL at any moment of the swap: old content, new content, or the old one under its hidden
    name. One process imports what is needed, and forks those that are killed.
    """
    code = """
import itertools, os, signal, sys, time
from pathlib import Path
from solvers.files import replace_marked_folder

def swap(place, started):
    for k in itertools.count():
        write = lambda folder: (folder / "x").write_text(str(k))
        replace_marked_folder(place / "out", write, "thing")
        if k == 0:
            os.write(started, b"!")

for k in range(8):
    place = Path(sys.argv[1]) / str(k)
    place.mkdir()
    reads, started = os.pipe()
    child = os.fork()
    if child == 0:
        swap(place, started)
    assert os.read(reads, 1) == b"!"
    time.sleep(0.02 + 0.013 * k)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300)
    assert len(list(tmp_path.iterdir())) == 8
    for place in tmp_path.iterdir():
        assert any(path.name == "x" and path.read_text().isdigit() for path in place.rglob("*"))


def test_what_killed_processes_left_is_cleared_and_nothing_else(tmp_path):
    left, long = ".a.png.0123456789ab.part", "n" * 120 + ".png"
    kept = (".a.png.part", ".a.png.0123456789AB.part", ".b.png.0123456789ab.part", "a.png.part")
    for name in (left, f".{long[:100]}.00ff00ff00ff.part", *kept):
        (tmp_path / name).write_text("half")
    for name in (".there.0123456789ab.part", ".gone.0123456789ab.part", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text("half")
    places = [tmp_path / name for name in ("a.png", long, "there", "gone", "none/c.png")]
    clear_parts(places)
    folders = {".gone.0123456789ab.part/content": b"half", "there/content": b"half"}
    assert everything(tmp_path) == folders | dict.fromkeys(kept, b"half")


def test_one_process_at_a_time_in_a_folder(tmp_path):
    check = pytest.raises(InputError, match="another call is writing to")
    with alone_in(tmp_path / "a"), alone_in(tmp_path / "b"), check, alone_in(tmp_path / "a"):
        pass
    with alone_in(tmp_path / "a"):
        (tmp_path / "a").rmdir()
    with alone_in(tmp_path / "a"):
        assert (tmp_path / "a").is_dir()


@pytest.mark.long
def test_two_writers_of_one_folder(tmp_path):
    """Two processes that write one output at once: it is one of the two afterwards, whole."""
    code = """
import os, sys
from pathlib import Path
from solvers.files import replace_file
letter = "a" if os.fork() else "b"
for k in range(200):
    replace_file(Path(sys.argv[1]) / "out", lambda p: p.write_text(letter * 5000))
if letter == "a":
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert (tmp_path / "out").read_text() in ("a" * 5000, "b" * 5000)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_read_image_reads_what_was_written(tmp_path):
    write_image(tmp_path / "a.png", Photo(smooth_picture(8, 9)))
    assert read_image(tmp_path / "a.png").pixels.shape == (3, 8, 9)


def test_replace_folder_names_what_it_would_replace(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        replace_folder(tmp_path / "out", lambda p: fail(p / "x"), "thing", lambda p: None)
    assert list(tmp_path.iterdir()) == []
