"""A working folder and its place in a store are alike commit by commit, whoever is killed or comes between."""

import contextlib
import os
import uuid
from pathlib import Path

import pytest

from embedpipe import files, filesystem
from embedpipe.errors import InputError, OutputBusy, StorageFailed
from embedpipe.mirror import Scope, at_work, local_copy, local_file, working_folder

SCOPE = Scope(own=("checkpoints",), leave=("cache",))
BEFORE = {"checkpoints/1/weights": b"1" * 9, "checkpoints/1/state.json": b"{1}", "metrics": b"a", "run.json": b"{1}"}
AFTER = {"checkpoints/2/weights": b"2" * 9, "checkpoints/2/state.json": b"{2}", "metrics": b"ab", "run.json": b"{2}"}


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(filesystem, "_PAUSE_S", 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # processes die here, not machines
    return f"memory://{uuid.uuid4().hex}/runs/prior"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Be on the machine of that name."""

    def switch(name):
        monkeypatch.setenv("EMBEDPIPE_CACHE", str(tmp_path / name))

    switch("one")
    return switch


def put(folder, content):
    """Make a folder hold that, and nothing else that is mirrored."""
    for path in files.walk(folder):
        if not path.startswith(".") and path not in content and not path.startswith("cache/"):
            files.remove(files.join(folder, path))
    for path, data in content.items():
        files.write_bytes(files.join(folder, path), data)


def visible(root):
    found = {path: files.read_bytes(files.join(root, path)) for path in files.walk(root)}
    return {path: data for path, data in found.items() if not path.startswith((".", "cache"))}


def work(url, content, scope=SCOPE):
    with at_work(url, scope) as place:
        put(place.folder, content)


def begun(url):
    with at_work(url, SCOPE) as place:
        return visible(place.folder)


def test_a_local_output_is_worked_on_where_it_is(tmp_path):
    with at_work(str(tmp_path), SCOPE) as place:
        assert place.folder == str(tmp_path) == working_folder(f"file://{tmp_path}")
        place.commit()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_is_committed_is_in_the_store_and_on_the_next_machine(url, machine):
    for content in (BEFORE, AFTER):
        work(url, content)
        assert visible(url) == content
        assert len(files.names(f"{url}/.commits")) == 1
    machine("two")
    assert begun(url) == AFTER


def test_what_stays_here_stays_here(url, machine):
    with at_work(url, SCOPE) as place:
        put(place.folder, {**BEFORE, "cache/pixels": b"much", ".hidden/x": b"x"})
    assert visible(url) == BEFORE
    assert not [path for path in files.walk(url) if path.startswith(("cache", ".hidden"))]
    machine("two")
    work(url, AFTER)
    machine("one")
    assert begun(url) == AFTER
    assert (Path(working_folder(url)) / "cache" / "pixels").read_bytes() == b"much"
    assert not (Path(working_folder(url)) / "checkpoints" / "1").exists(), "not even an empty folder"


class Killed(BaseException):
    pass


def kill_at(monkeypatch, step):
    """Die before or behind the request with that number; returns whether there was one."""
    count, struck = 0, []

    def counted(request):
        def dies(*arguments):
            nonlocal count
            at, count = count, count + 2
            if at == step or struck:
                struck.append(True)
                raise Killed
            found = request(*arguments)
            if at + 1 == step:
                struck.append(True)
                raise Killed
            return found

        return dies

    for name in ("upload", "create", "copy", "remove", "download"):
        monkeypatch.setattr(files, name, counted(getattr(files, name)))
    return struck


def deaths(monkeypatch, prepare, doomed):
    """Every request in turn at which `doomed` died, until there are no more."""
    for step in range(100):
        prepare(step)
        with monkeypatch.context() as patch:
            struck = kill_at(patch, step)
            with contextlib.suppress(Killed):
                doomed(step)
        if not struck:
            return
        yield step
    raise AssertionError("it never ends")


def test_a_writer_may_die_at_any_request(url, machine, monkeypatch):
    def prepare(step):
        machine(f"writer {step}")
        work(f"{url}-{step}", BEFORE)

    died = 0
    for step in deaths(monkeypatch, prepare, lambda step: work(f"{url}-{step}", AFTER)):
        died += 1
        there = f"{url}-{step}"
        machine(f"other {step}")
        assert begun(there) in (BEFORE, AFTER), "never a mixture"
        machine(f"writer {step}")
        work(there, AFTER)
        assert visible(there) == AFTER, "nothing is left of either"
        assert len(files.names(f"{there}/.commits")) == 1
    assert died > 12


def test_a_reader_may_die_at_any_request(url, machine, monkeypatch):
    work(url, BEFORE)

    for _ in deaths(monkeypatch, lambda step: machine(f"reader {step}"), lambda _: begun(url)):
        assert begun(url) == BEFORE
        assert visible(url) == BEFORE


def test_an_older_folder_takes_what_the_store_has_and_says_so(url, machine, caplog):
    work(url, BEFORE)
    machine("two")
    work(url, AFTER)
    machine("one")
    assert begun(url) == AFTER
    assert "was changed from elsewhere since this machine last wrote to it" in caplog.text
    caplog.clear()
    assert begun(url) == AFTER
    assert caplog.text == ""


def test_of_two_at_once_the_second_to_commit_is_refused(url, machine):
    work(url, BEFORE)
    with at_work(url, SCOPE) as place:
        machine("two")
        work(url, AFTER)
        put(place.folder, {"run.json": b"mine"})
        with pytest.raises(OutputBusy, match="another machine writes to it: it has committed since this command"):
            place.commit()
        put(place.folder, BEFORE)
    assert visible(url) == AFTER
    machine("one")
    assert begun(url) == AFTER


def test_of_two_that_commit_in_one_moment_one_wins(url, machine, monkeypatch):
    work(url, BEFORE)
    create = files.create

    def late(location, data):
        monkeypatch.setattr(files, "create", create)
        machine("two")
        work(url, AFTER)  # after the first has looked and uploaded
        return create(location, data)

    machine("one")
    with at_work(url, SCOPE) as place:
        put(place.folder, {"checkpoints/3/weights": b"3"})
        monkeypatch.setattr(files, "create", late)
        with pytest.raises(OutputBusy):
            place.commit()
        put(place.folder, BEFORE)
    machine("three")
    assert begun(url) == AFTER


def test_two_commands_on_one_machine_exclude_each_other(url, machine):
    with at_work(url, SCOPE), pytest.raises(OutputBusy, match="in use by process"), at_work(url, SCOPE):
        pass


def test_what_a_user_does_in_the_store_counts(url, machine):
    filesystem.filesystem(url)[0].pipe_file(url.removeprefix("memory://") + "/README", b"mine")
    work(url, BEFORE)
    assert visible(url) == {**BEFORE, "README": b"mine"}, "another's file is let alone"
    for path in files.walk(url):
        files.remove(files.join(url, path))
    assert begun(url) == {}, "an emptied output is begun anew"


def test_a_run_that_was_copied_there_is_gone_on_with(url, machine):
    for path, data in BEFORE.items():
        files.write_bytes(files.join(url, path), data)
    assert begun(url) == BEFORE
    files.write_bytes(f"{url}/checkpoints/3/torn", b"")
    work(url, AFTER)
    assert visible(url) == AFTER


def test_works_that_share_a_folder_do_not_touch_each_other(url, machine):
    image, text = (Scope((f"{side}[.-]*",), rest=False, name=side) for side in ("image", "text"))
    work(url, {"image.json": b"i", "image-1.faiss": b"1"}, image)
    with at_work(url, text) as place:
        files.write_bytes(files.join(place.folder, "text.json"), b"t")
    machine("two")
    with at_work(url, image) as place:
        assert set(visible(place.folder)) == {"image.json", "image-1.faiss"}
        put(place.folder, {"image.json": b"j", "image-2.faiss": b"2"})
    assert visible(url) == {"image.json": b"j", "image-2.faiss": b"2", "text.json": b"t"}


def test_a_file_is_fetched_once_by_its_content(url, machine):
    written = files.write_bytes(f"{url}/a.faiss", b"index")
    place = local_file(f"{url}/a.faiss", written)
    assert Path(place).read_bytes() == b"index"
    files.remove(f"{url}/a.faiss")
    assert local_file(f"{url}/other", written) == place
    files.write_bytes(f"{url}/a.faiss", b"other")
    machine("two")
    with pytest.raises(StorageFailed, match=r"a\.faiss: is not what was committed there"):
        local_file(f"{url}/a.faiss", written)
    assert not list(Path(working_folder(url)).parents[2].rglob("*.tmp-*"))


def test_a_run_folder_is_copied_without_its_checkpoints(url, machine, tmp_path):
    assert local_copy(str(tmp_path)) == str(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        local_copy(url)
    for content in (BEFORE, {**AFTER, "more": b"m"}, AFTER):
        work(url, content)
        copy = local_copy(url)
        assert visible(copy) == {path: data for path, data in content.items() if "checkpoints" not in path}
    assert copy.endswith("/prior")
