"""Whatever happens to a committed file, verify finds it and names the shard."""

import contextlib
import json
import random
import shutil

import numpy as np
import pytest

from embedpipe.errors import DatasetError, EmbedpipeError, InputError
from embedpipe.info import describe
from embedpipe.verify import verify


def data_files(folder):
    return sorted(p for name in ("img_emb", "text_emb", "metadata", "errors") for p in folder.glob(f"{name}/*"))


def test_an_undamaged_data_set_is_whole(encoded_once):
    report = verify(encoded_once[1])
    assert report.whole
    assert (report.planned, report.committed, report.missing, report.rows, report.rejected) == (3, 3, 0, 21, 0)


@pytest.mark.parametrize("seed", range(60))
def test_any_damage_to_a_data_file_is_found_and_the_shard_named(seed, encoded):
    rng = random.Random(seed)
    path = rng.choice(data_files(encoded))
    data = path.read_bytes()
    kind = ("flip", "cut", "remove", "swap", "grow", "folder")[seed % 6]
    numbers = {int(path.stem[-5:])}
    if kind == "flip":
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ rng.randrange(1, 256)]) + data[place + 1 :])
    elif kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "remove":
        path.unlink()
    elif kind == "swap":
        other = rng.choice([p for p in path.parent.iterdir() if p != path])
        numbers.add(int(other.stem[-5:]))
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "grow":
        path.write_bytes(data + b"\0")
    else:
        path.unlink()
        path.mkdir()
    report = verify(str(encoded))
    assert {fault.number for fault in report.faults} == numbers
    assert all(path.parent.name in fault.what for fault in report.faults)
    assert all(fault.name == f"{fault.number:05d}.tar" for fault in report.faults)


@pytest.mark.parametrize("seed", range(40))
def test_no_damage_to_a_manifest_or_run_card_makes_verify_raise_anything_else(seed, encoded):
    rng = random.Random(seed)
    path = rng.choice([*sorted(encoded.glob("manifest/*.json")), encoded / "embedpipe.json"])
    data = bytearray(path.read_bytes())
    if seed % 2:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        data = data[: rng.randrange(len(data))]
    path.write_bytes(data)
    with contextlib.suppress(EmbedpipeError):
        describe(str(encoded))
    try:
        whole = verify(str(encoded)).whole
    except EmbedpipeError:
        whole = False
    assert seed % 2 or not whole


@pytest.mark.parametrize(
    "change",
    [
        {"rows_in": 8},
        {"rows_out": 6, "rows_in": 6},
        {"rows_rejected": 1, "rows_in": 8},
        {"rows_rejected": 1, "rows_in": 8, "rejects": {"image_empty": 1}},
        {"rejects": {"image_empty": 2}},
        {"dim": 8},
        {"dtype": "float32"},
        {"fingerprint": "other"},
        {"number": 2},
        {"files": []},
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_a_fault(change, encoded):
    path = encoded / "manifest" / "00001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert {fault.number for fault in verify(str(encoded)).faults} == {1}


def test_manifests_of_another_place_are_found(encoded):
    shutil.copy(encoded / "manifest" / "00000.json", encoded / "manifest" / "00001.json")
    assert {fault.number for fault in verify(str(encoded)).faults} == {1}
    run = json.loads((encoded / "embedpipe.json").read_text())
    run["plan"] = run["plan"][:2]
    (encoded / "embedpipe.json").write_text(json.dumps(run))
    assert {fault.number for fault in verify(str(encoded)).faults} == {1, 2}


def test_a_shard_that_is_not_made_yet_is_missing_and_no_fault(encoded):
    (encoded / "manifest" / "00002.json").unlink()
    report = verify(str(encoded))
    assert report.whole
    assert (report.committed, report.missing, report.rows) == (2, 1, 14)


def test_numbers_that_fit_but_are_wrong_are_found(encoded):
    path = encoded / "img_emb" / "img_emb_00001.npy"
    array = np.load(path)
    np.save(path, array[::-1])
    assert [fault.what for fault in verify(str(encoded)).faults] == [
        "img_emb/img_emb_00001.npy: the checksum does not match: its bytes were changed"
    ]


def test_what_is_no_output_of_ours_says_so(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        verify(str(tmp_path / "no"))
    with pytest.raises(DatasetError, match=r"no embedpipe\.json"):
        verify(str(tmp_path))
