"""Several processes, each with a part of the shards, into one output."""

import contextlib
import json
import os
import threading

import pytest

from embedpipe import manifest
from embedpipe.encode.forecast import forecast
from embedpipe.encode.job import encode, plan_encode
from embedpipe.encode.partition import part_of
from embedpipe.encode.worker import EncodeWork
from embedpipe.errors import InputError, OutputBusy, OutputUnwritable, RunMismatch, StorageFailed
from embedpipe.execute import resources
from embedpipe.lock import Part, claimed, exclusive
from embedpipe.verify import verify
from embedpipe.verify.worker import VerifyWork
from tests import shards


@pytest.fixture
def source(tmp_path):
    return shards.write_shards(tmp_path / "shards", 5, 3)


@pytest.fixture
def whole(source, tmp_path, encode_config):
    """What one process makes of it."""
    out = tmp_path / "whole"
    encode(source, str(out), encode_config())
    return shards.tree(out)


def test_parts_one_after_the_other_make_what_one_run_makes(source, whole, tmp_path, encode_config):
    out = tmp_path / "parts"
    made = [encode(source, str(out), encode_config(part=Part(i, 2))) for i in (1, 0)]
    assert [(report.planned, report.report.tasks) for report in made] == [(2, 2), (3, 3)]
    assert shards.tree(out) == whole
    again = encode(source, str(out), encode_config(part=Part(0, 2)))
    assert (again.report.tasks, again.already) == (0, 3)
    assert encode(source, str(out), encode_config()).already == 5


def test_parts_at_once_make_it_too(source, whole, tmp_path, encode_config):
    out, raised = tmp_path / "parts", []

    def part(i):
        try:
            encode(source, str(out), encode_config(part=Part(i, 3)))
        except Exception as problem:
            raised.append(problem)

    threads = [threading.Thread(target=part, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    assert shards.tree(out) == whole
    assert manifest.read_run(str(out)).pending == ()
    assert not list(out.glob(".lock-*-of-*"))


def test_a_part_leaves_alone_what_another_has_half_written(source, tmp_path, encode_config):
    out = tmp_path / "parts"
    encode(source, str(out), encode_config(part=Part(0, 2)))
    theirs = out / "img_emb" / "img_emb_00001.npy.tmp-1-abc"
    mine = out / "img_emb" / "img_emb_00002.npy.tmp-1-abc"
    card = out / "embedpipe.json.tmp-1-abc"
    data = out / "img_emb" / "img_emb_00001.npy"
    for path in (theirs, mine, card, data):
        path.write_bytes(b"half")
    encode(source, str(out), encode_config(part=Part(0, 2)))
    assert (theirs.exists(), mine.exists(), card.exists(), data.exists()) == (True, False, True, True)


def test_the_same_part_and_the_whole_are_refused_meanwhile(source, tmp_path, encode_config):
    out = str(tmp_path / "parts")
    with claimed(out, Part(1, 2)):
        with pytest.raises(OutputBusy, match="part 1/2 is in use by"):
            encode(source, out, encode_config(part=Part(1, 2)))
        with pytest.raises(OutputBusy, match="which does part 1/2 of it"):
            encode(source, out, encode_config())
    with exclusive(out), pytest.raises(OutputBusy):
        encode(source, out, encode_config(part=Part(1, 2)))


def test_shards_that_appear_between_parts_are_appended_once(source, tmp_path, encode_config):
    out = str(tmp_path / "parts")
    encode(source, out, encode_config(part=Part(0, 2)))
    shards.write_tar(tmp_path / "shards" / "00000-new.tar", shards.samples(2, first=90))
    encode(source, out, encode_config(part=Part(1, 2)))
    names = [shard.name for shard in manifest.read_run(out).plan]
    assert names == ["00000.tar", "00001.tar", "00002.tar", "00003.tar", "00004.tar", "00000-new.tar"]
    assert manifest.committed_numbers(out) == [0, 1, 2, 3, 4, 5]
    assert verify(out).whole


def test_a_damaged_shard_of_another_part_is_theirs(source, tmp_path, encode_config):
    out = tmp_path / "parts"
    encode(source, str(out), encode_config())
    for number in (1, 2):
        (out / "img_emb" / f"img_emb_{number:05d}.npy").write_bytes(b"torn")
    report = encode(source, str(out), encode_config(part=Part(0, 2)))
    assert report.redone == ("00002.tar",)
    assert (out / "img_emb" / "img_emb_00001.npy").read_bytes() == b"torn"
    assert encode(source, str(out), encode_config(part=Part(1, 2))).redone == ("00001.tar",)
    assert verify(str(out)).whole


def test_a_part_under_other_options_is_refused(source, tmp_path, encode_config):
    out = str(tmp_path / "parts")
    encode(source, out, encode_config(part=Part(0, 2)))
    with pytest.raises(RunMismatch, match="set of options: texts was true, now false"):
        encode(source, out, encode_config(part=Part(1, 2), stage={"texts": False}))


def test_a_part_cannot_begin_the_output_again(source, tmp_path, encode_config):
    with pytest.raises(InputError, match="part 0/2 cannot begin the whole output again"):
        encode(source, str(tmp_path / "out"), encode_config(part=Part(0, 2), overwrite=True))


def test_the_plan_of_a_part_is_its_own(source, tmp_path, encode_config):
    change, todo = plan_encode(source, str(tmp_path / "out"), encode_config(part=Part(1, 2)))
    assert (len(change.shards), todo) == (5, [1, 3])


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}, Part(3, 16, 8, 3)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, Part(5, 8)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "10"}, Part(6, 10)),
        (
            {
                **{"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "2"},
                **{"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_PROCID": "1", "SLURM_NTASKS": "3"},
            },
            Part(7, 12),
        ),
        (  # srun --nodes 3 --ntasks-per-node 8, with all GPUs of the node in sight of each task
            {
                **{"SLURM_PROCID": "13", "SLURM_NTASKS": "20", "SLURM_NODEID": "1", "SLURM_LOCALID": "5"},
                **{"SLURM_NTASKS_PER_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_TASKS_PER_NODE": "9"},
                **{"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "96"},
            },
            Part(13, 20, 8, 5, 8, 96),
        ),
        (
            {
                **{"SLURM_PROCID": "17", "SLURM_NTASKS": "20", "SLURM_NODEID": "2", "SLURM_LOCALID": "1"},
                **{"SLURM_TASKS_PER_NODE": "8(x2),4", "SLURM_GPUS_PER_TASK": "h100:2"},
            },
            Part(17, 20, 4, 1, 8),
        ),
        (
            {
                **{"SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_NODEID": "1", "SLURM_LOCALID": "1"},
                **{"SLURM_NTASKS_PER_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "nonsense"},
            },
            Part(9, 16, 8, 1),
        ),
        ({"RANK": "0", "WORLD_SIZE": "1", "SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, Part(0, 1)),
    ],
)
def test_launchers_say_which_part_it_is(environment, part):
    assert part_of("auto", environment) == part


def test_tasks_of_slurm_that_each_see_all_gpus_take_one_each(monkeypatch, encode_config):
    monkeypatch.setattr(resources, "_gpus_here", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    node = {"SLURM_NTASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_GPUS_ON_NODE": "8"}
    node |= {"SLURM_CPUS_ON_NODE": "96"}
    taken = []
    for task in range(16):
        own = {"SLURM_PROCID": str(task), "SLURM_NODEID": str(task // 8), "SLURM_LOCALID": str(task % 8)}
        config = encode_config(part=part_of("auto", {**node, **own}), gpus=None, threads_per_worker=None)
        taken.append(resources.places_here(config.demand()))
    assert taken == [resources.Allocation((f"cuda:{task % 8}",), 12) for task in range(16)]


def test_every_task_of_an_array_has_another_part():
    parts = {
        part_of(
            "auto",
            {
                **{"SLURM_ARRAY_TASK_ID": str(3 + array), "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "4"},
                **{"SLURM_PROCID": str(task), "SLURM_NTASKS": "2"},
            },
        )
        for array in range(4)
        for task in range(2)
    }
    assert parts == {Part(i, 8) for i in range(8)}


@pytest.mark.parametrize("text", ["", "3", "a/b", "1/", "-1/3", "1.5/3"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(InputError, match="is no part. Give i/n"):
        part_of(text, {})


def test_no_launcher_is_told():
    with pytest.raises(InputError, match="`part='auto'`: no launcher says which of its processes this one is"):
        part_of("auto", {"RANK": "1"})


def test_a_forecast_needs_a_rate_and_samples(source, tmp_path, encode_config):
    out = str(tmp_path / "out")
    change, _ = plan_encode(source, out, encode_config())
    nothing = forecast(source, out, change.shards, 1)
    assert (nothing.shards, nothing.samples, nothing.rate, nothing.seconds, nothing.cost) == (5, None, None, None, None)
    encode(source, out, encode_config(part=Part(0, 2)))
    left = [change.shards[1], change.shards[3]]
    ahead = forecast(source, out, left, 2, rate=3.0, price=36.0)
    assert (ahead.samples, ahead.samples_from, ahead.rate_from) == (6, "bytes, as in earlier shards", "given")
    assert (ahead.seconds, ahead.cost) == (1.0, pytest.approx(1.0 * 2 / 3600 * 36))
    measured = forecast(source, out, left, 1)
    assert measured.rate_from == "earlier shards"
    spent = [entry.timing_s for entry in manifest.read_manifests(out, 5)]
    assert measured.rate == pytest.approx(9 / sum(entry["model"] + entry["wait"] for entry in spent))
    with pytest.raises(InputError, match="a price of -1"):
        forecast(source, out, left, 1, price=-1)


def test_dry_run_tells_what_it_takes(source, tmp_path, embedpipe, tiny_model):
    arguments = (
        "encode",
        source,
        tmp_path / "out",
        "--model",
        tiny_model,
        "--gpus",
        0,
        "--dry-run",
        "--shard-of",
        "1/2",
    )
    told = json.loads(embedpipe(*arguments, "--rate", 10, "--price", 2).stdout)
    assert told["to_encode"] == [1, 3]
    assert (told["forecast"]["shards"], told["forecast"]["rate"]) == (2, 10)
    assert told["config"]["part"] == {
        **{"index": 1, "count": 2, "neighbours": 1, "neighbour": 0},
        **{"shared_gpus": None, "shared_cores": None},
    }
    refused = embedpipe(*arguments[:-1], "2/2")
    assert (refused.exit_code, refused.stderr) == (2, "error: no part 2 of 2. Parts are 0 to 1\n")


def test_a_part_that_is_killed_goes_on(source, whole, tmp_path, encode_config):
    out = tmp_path / "parts"
    seen = []

    def stop(step):
        seen.append(step)
        if step.finished is not None:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        encode(source, str(out), encode_config(part=Part(0, 2)), stop)
    assert seen
    (out / ".lock-0-of-2").write_text("{}")
    for i in (0, 1):
        encode(source, str(out), encode_config(part=Part(i, 2)))
    assert shards.tree(out) == whole


def test_a_worker_that_does_not_see_the_output_says_so(encoded, tmp_path, encode_config):
    """What the worker of another machine does whose folder of that name is its own."""
    run, nowhere = manifest.read_run(str(encoded)), str(tmp_path / "nowhere")
    config = encode_config()
    work = EncodeWork(config.reader(str(tmp_path)), config.encoder, config.stage, nowhere, run, ("cpu",), 1)
    with pytest.raises(OutputUnwritable, match="does not see the output that the run began. Give a folder that all"):
        work.start(0)
    with pytest.raises(StorageFailed, match="does not see it. Give a folder that all machines share"):
        VerifyWork(nowhere, run, False).start(0)
