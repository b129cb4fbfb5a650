"""Nothing outside of an output is written, truncated or deleted, whatever links lie inside it."""

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from embedpipe import files
from embedpipe.containment import open_regular, refuse_outward_link, refuse_outward_links
from embedpipe.curate.dedup.job import DedupConfig, dedup
from embedpipe.curate.filter.job import FilterConfig, filter
from embedpipe.errors import EmbedpipeError, InputError, OutputUnwritable
from embedpipe.export.base import ExportConfig
from embedpipe.export.job import export
from embedpipe.fetch import FetchConfig, fetch
from embedpipe.index import IndexConfig, build_index
from embedpipe.lock import exclusive
from embedpipe.merge.job import merge
from embedpipe.verify.job import VerifyConfig, verify
from tests import shards
from tests.embeddings import write_dataset


def data_set(folder):
    rng = np.random.default_rng(0)
    return write_dataset(folder, rng.normal(size=(60, 8)), rng.normal(size=(60, 8)), shards=3)


def two_data_sets(folder):
    return [data_set(folder / name) for name in "ab"]


def photos(folder):
    return shards.write_files(folder, [(f"{i}.png", shards.png(i)) for i in range(3)])


def repaired(out):
    verify(out, VerifyConfig(repair=True))


# Each: what makes the input, the command over it, and what else is done to its output.
COMMANDS = {
    "merge": (two_data_sets, lambda both, out: merge(both, out), repaired),
    "filter": (data_set, lambda emb, out: filter(emb, out, FilterConfig(top=0.5, materialise=True)), None),
    "dedup": (data_set, lambda emb, out: dedup(emb, out, DedupConfig(threads=1, materialise=True)), None),
    "export-parquet": (data_set, lambda emb, out: export(emb, out, ExportConfig("parquet")), None),
    "export-hf": (data_set, lambda emb, out: export(emb, out, ExportConfig("hf")), None),
    "export-clip-retrieval": (data_set, lambda emb, out: export(emb, out, ExportConfig("clip-retrieval")), None),
    "index": (lambda emb: None, lambda _, out: build_index(data_set(out)), repaired),
    "fetch": (photos, lambda folder, out: fetch(folder, out, FetchConfig(processes=1, drop_duplicates=True)), repaired),
}


@pytest.fixture(scope="module", params=COMMANDS)
def finished(request, tmp_path_factory):
    """(name of the command, its input, its finished output)."""
    make, command, _ = COMMANDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    source = make(folder / "source")
    command(source, str(folder / "out"))
    return request.param, source, folder / "out"


@pytest.fixture
def made(finished, tmp_path):
    """(the command without arguments, what repairs its output, a copy of the finished output)."""
    name, source, original = finished
    _, command, repair = COMMANDS[name]
    out = tmp_path / "out"
    shutil.copytree(original, out)
    if name == "index":
        return lambda: build_index(str(out), IndexConfig(rebuild=True)), lambda: repaired(str(out)), out
    return lambda: command(source, str(out)), lambda: repair and repair(str(out)), out


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run_all(*steps):
    for step in steps:
        with contextlib.suppress(EmbedpipeError):
            step()


@pytest.mark.parametrize("content", ["its own", "cut", "precious"])
def test_files_behind_links_stay_as_they_are(made, tmp_path, content):
    again, repair, out = made
    victims = tmp_path / "victims"
    for path in [p for p in sorted(out.rglob("*")) if p.is_file()]:
        victim = victims / path.relative_to(out)
        victim.parent.mkdir(parents=True, exist_ok=True)
        path.rename(victim)
        if content == "cut" and path.suffix not in (".json", ""):
            victim.write_bytes(victim.read_bytes()[:-1])
        if content == "precious":
            victim.write_bytes(b"precious")
        path.symlink_to(victim)
    before = contents(victims)
    run_all(again, repair)
    for link in out.glob(".*"):  # what a run locks is refused first; without it the others are tried
        if link.is_symlink():
            link.unlink()
    run_all(again, repair)
    assert contents(victims) == before


def test_folders_behind_links_stay_as_they_are(made, tmp_path):
    again, repair, out = made
    folders = [p for p in sorted(out.rglob("*")) if p.is_dir()]
    for number, folder in enumerate(folders):
        kept, victim = tmp_path / f"kept{number}", tmp_path / f"victim{number}"
        shutil.copytree(folder, victim)
        for name in ("parts", "urls-x"):
            (victim / name).mkdir(exist_ok=True)
            (victim / name / "mine.txt").write_text("mine")
        (victim / "img_emb_00000.npy.tmp-1-ab").write_text("mine")
        folder.rename(kept)
        folder.symlink_to(victim)
        before = contents(victim)
        only_read = (out / "index").is_dir() and folder.name != "index"
        with (
            contextlib.nullcontext()
            if only_read
            else pytest.raises(OutputUnwritable, match=rf"{folder}: a symbolic link that leads out of")
        ):
            again()
        run_all(repair)
        assert contents(victim) == before
        folder.unlink()
        kept.rename(folder)
    again()  # and without links all is well


@pytest.mark.parametrize("dangling", [False, True])
def test_a_lock_that_is_a_link_is_refused_by_name(tmp_path, dangling):
    out, victim = tmp_path / "out", tmp_path / "victim.txt"
    out.mkdir()
    (out / ".lock").symlink_to(victim)
    if not dangling:
        victim.write_text("mine")
    with pytest.raises(OutputUnwritable, match=r"\.lock: a symbolic link, where a file of the run belongs. Remove it"):
        exclusive(str(out)).__enter__()
    assert victim.exists() != dangling
    assert dangling or victim.read_text() == "mine"


def test_a_lock_that_is_a_pipe_or_a_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OutputUnwritable, match="not a regular file"):
        exclusive(str(tmp_path)).__enter__()
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OutputUnwritable):
        exclusive(str(tmp_path)).__enter__()


def test_a_pipe_where_a_file_is_read_at_once_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "embedpipe.json")
    for read in (files.read_bytes, files.read_if_there):
        with pytest.raises(InputError, match="not a regular file"):
            read(str(tmp_path / "embedpipe.json"))
    with pytest.raises(InputError, match="not a regular file"):
        verify(str(tmp_path))


def test_the_output_itself_may_be_a_link_and_so_may_what_stays_inside(tmp_path):
    real, out = tmp_path / "real", tmp_path / "out"
    (real / "deep" / "er").mkdir(parents=True)
    out.symlink_to(real)
    (real / "latest").symlink_to("deep")  # as wandb makes one
    (real / "deep" / "absolute").symlink_to(out / "deep" / "er")
    (tmp_path / "elsewhere.tar").write_bytes(b"read only")
    (real / "00000.tar").symlink_to(tmp_path / "elsewhere.tar")
    refuse_outward_links(str(out))
    with exclusive(str(out)):
        files.write_bytes(str(out / "00000.tar"), b"ours")
    assert (tmp_path / "elsewhere.tar").read_bytes() == b"read only"
    assert (real / "00000.tar").read_bytes() == b"ours"


@pytest.mark.parametrize("place", ["gone", "deep/gone", ".state", ".state/file", "deep/up"])
def test_links_out_of_it_are_found_at_any_depth(tmp_path, place):
    out = tmp_path / "out"
    (out / place).parent.mkdir(parents=True)
    (out / place).symlink_to(Path("..") / ".." / "nowhere" if "up" not in place else tmp_path)
    with pytest.raises(OutputUnwritable, match=f"{out / place}: a symbolic link that leads out of {out}"):
        refuse_outward_links(str(out))
    with pytest.raises(OutputUnwritable):
        refuse_outward_link(str(out), str(out / place))


def test_a_new_file_has_the_usual_mode(tmp_path):
    (tmp_path / "plain").touch()
    os.close(open_regular(tmp_path / "ours", os.O_WRONLY | os.O_CREAT))
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
