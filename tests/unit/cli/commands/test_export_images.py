"""`embedpipe export --to images`: the shards of a subset, from the command line."""

import json
import shutil


def test_what_filter_kept_becomes_image_shards(embedpipe, encoded_once, tmp_path):
    source, data = encoded_once
    embedpipe("filter", data, tmp_path / "kept", "--where", "number % 2 = 0")
    options = ("export", data, tmp_path / "out", "--to", "images", "--keys", tmp_path / "kept")
    planned = json.loads(embedpipe(*options, "--dry-run").stdout)
    assert planned == {"rows": 11, "shards": 3, "from": source}
    assert not (tmp_path / "out").exists()
    done = embedpipe(*options)
    assert done.exit_code == 0, done.output
    assert "11 samples in 3 shards" in done.stdout
    assert embedpipe("verify", tmp_path / "out").exit_code == 0
    assert "(3 of them were there already)" in embedpipe(*options).stdout


def test_moved_input_is_told(embedpipe, encoded_once, tmp_path):
    source, data = encoded_once
    moved = shutil.copytree(source, tmp_path / "moved")
    done = embedpipe("export", data, tmp_path / "out", "--to", "images", "--images", moved, "--json")
    assert json.loads(done.stdout)["rows"] == 21
    done = embedpipe("export", data, tmp_path / "other", "--to", "images", "--images", tmp_path / "nowhere")
    assert done.exit_code == 1
    assert "nowhere: no such file or folder" in done.stderr
    assert embedpipe("export", data, tmp_path / "other").exit_code == 2


def test_the_old_spelling_goes_on_working_with_a_note(embedpipe, encoded_once, tmp_path):
    source, data = encoded_once
    moved = shutil.copytree(source, tmp_path / "moved")
    done = embedpipe("export", "--images", data, tmp_path / "out", f"--data={moved}", "--dry-run")
    assert json.loads(done.stdout)["from"] == str(moved)
    assert "note: --images is called --to images now" in done.stderr
    assert "note: --data is called --images now" in done.stderr
    assert "--data" not in embedpipe("export", "--help").stdout
    for command in ("dedup", "filter"):
        some = ("--where", "number >= 0") if command == "filter" else ()
        done = embedpipe(command, data, tmp_path / command, *some, "--data", moved)
        assert done.exit_code == 0, done.output
        assert "note: --data is called --images now" in done.stderr
