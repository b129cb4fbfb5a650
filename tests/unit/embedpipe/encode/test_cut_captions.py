"""Tokens that a caption loses at the end of the context: counted exactly, whoever's tokenizer it is."""

import json
import types

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from embedpipe import manifest
from embedpipe.encode import EncoderConfig, load_encoder
from embedpipe.encode.cut_captions import cut_counter
from embedpipe.encode.job import encode
from embedpipe.errors import ModelError, OptionError, RunMismatch
from embedpipe.info import describe
from embedpipe.load import EmbeddingDataset
from embedpipe.verify import verify
from tests import shards, tiny_clip

FAR = 10_000
LONG = "a very long caption " * 20


def captions_around(context):
    """Of every length near the border, and some that are odd."""
    words = [" ".join(["cat"] * count) for count in range(context - 5, context + 6)]
    odd = [
        "",
        "!",
        "!" * 300,
        "猫" * 40,
        "&lt;end&gt; " * 30,
        LONG,
        "a <|endoftext|> b",
        "[SEP] [PAD] " * 60,
        "</s> " * 80,
    ]
    return words + odd


def hugging_face(kind, context):
    """A tokenizer of Hugging Face's own code, its vocabulary made here."""
    import tokenizers
    import transformers
    from tokenizers.models import Unigram, WordPiece
    from tokenizers.processors import TemplateProcessing

    words = ["cat", "a", "very", "long", "caption", "b", "lt", "end", "gt"]
    if kind == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        inner = tokenizers.Tokenizer(WordPiece({w: i for i, w in enumerate(special + words)}, unk_token="[UNK]"))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        inner.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:  # SigLIP's: it pads with its end token
        inner = tokenizers.Tokenizer(Unigram([("<unk>", 0.0), ("</s>", 0.0), *((w, -1.0) for w in words)], unk_id=0))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        named = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = HFTokenizer.__new__(HFTokenizer)
    made.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    made.tokenizer_mode, made.context_length = "", context
    made.clean_fn = open_clip.tokenizer.get_clean_fn("canonicalize" if kind == "siglip" else "whitespace")
    made.strip_sep_token = kind == "bert"
    return made


TOKENIZERS = {
    "clip": (lambda: SimpleTokenizer(context_length=77), 0),
    "clip, 16": (lambda: SimpleTokenizer(context_length=16), 0),
    "coca": (lambda: SimpleTokenizer(context_length=76), 0),
    "bert": (lambda: hugging_face("bert", 77), 0),
    "siglip": (lambda: hugging_face("siglip", 64), 1),
}


def check(tokenizer, pad_id, captions):
    tokens, whole = tokenizer(captions), tokenizer(captions, context_length=FAR)
    counted = cut_counter(tokenizer)(captions, tokens)
    assert counted.dtype == np.int32
    # How many places the same text fills with room for all of it, over the room there is. Padding is found by its end,
    # since its id may stand for a word, too; an end token that is also the padding's is not seen on either side.
    places = np.arange(1, FAR + 1)
    length = ((whole != pad_id).numpy() * places).max(axis=1)
    length += pad_id == tokenizer_end(tokenizer)
    for caption, count, needed in zip(captions, counted.tolist(), length.tolist(), strict=True):
        assert count == max(0, needed - tokens.shape[1]), (caption, needed)
    return counted


def tokenizer_end(tokenizer):
    return getattr(getattr(tokenizer, "tokenizer", None), "eos_token_id", None)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_count_is_what_the_same_tokenizer_gives_with_room_for_all(name):
    make, pad_id = TOKENIZERS[name]
    tokenizer = make()
    captions = captions_around(tokenizer.context_length)
    if name == "bert":  # the tokenizer blanks out its own separators: what is at the end cannot be told from padding
        tokenizer.strip_sep_token = False
    counted = check(tokenizer, pad_id, captions)
    assert (counted == 0).any()
    assert (counted == 1).any()
    assert counted.max() > 10


def test_separators_that_are_blanked_out_count_as_they_are_cut():
    blanked, plain = hugging_face("bert", 77), hugging_face("bert", 77)
    plain.strip_sep_token = False
    captions = captions_around(77)
    assert blanked(captions).tolist() != plain(captions).tolist()
    counts = [cut_counter(each)(captions, each(captions)).tolist() for each in (blanked, plain)]
    assert counts[0] == counts[1]


def test_a_class_token_behind_the_padding_counts_as_the_models_own():
    """open_clip's mode `clips`: start and end token around the caption, then padding, then a class token."""
    tokenizer = hugging_face("bert", 20)
    tokenizer.tokenizer_mode, tokenizer.strip_sep_token = "clips", False
    tokenizer.tokenizer.bos_token, tokenizer.tokenizer.eos_token = "[CLS]", "[SEP]"
    captions = [" ".join(["cat"] * count) for count in (1, 16, 17, 18, 19, 40)]
    tokens, whole = tokenizer(captions), tokenizer(captions, context_length=FAR)
    counted = cut_counter(tokenizer)(captions, tokens)
    assert counted.tolist() == [0, 0, 0, 1, 2, 23]
    assert counted.tolist() == ((whole != 0).sum(dim=1) - 20).clamp(min=0).tolist()


@settings(max_examples=40)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_any_text_is_counted_right(texts):
    check(SIXTEEN, 0, texts)


SIXTEEN = SimpleTokenizer(context_length=16)


def test_few_captions_are_tokenised_twice():
    tokenizer = SimpleTokenizer(context_length=16)
    tokens = tokenizer(["short"] * 50 + [LONG])
    seen = []
    real = tokenizer.encode
    tokenizer.encode = lambda text: seen.append(text) or real(text)
    assert cut_counter(tokenizer)(["short"] * 50 + [LONG], tokens)[-1] == 4 * 20 + 2 - 16
    assert seen == [LONG]


def test_what_draws_tokens_or_is_not_known_is_not_counted():
    assert cut_counter(SimpleTokenizer(reduction_mask="random")) is None
    assert cut_counter(types.SimpleNamespace(context_length=7)) is None

    class Mine(SimpleTokenizer):
        pass

    assert cut_counter(Mine()) is None


# On disk.


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """One shard: the caption of every third sample has 82 tokens with the model's own, whose context is 16."""
    members = []
    for i in range(9):
        members += [(f"{i}.jpg", shards.jpeg(i)), (f"{i}.txt", (LONG if i % 3 == 0 else shards.caption(i)).encode())]
    return shards.write_tar(tmp_path_factory.mktemp("cut") / "a.tar", members)


@pytest.mark.parametrize("text_tokens", [False, True])
def test_rows_manifest_and_info_say_how_much_was_cut(source, text_tokens, tmp_path, encode_config, embedpipe):
    out = str(tmp_path / "emb")
    report = encode(source, out, encode_config(stage={"text_tokens": text_tokens}))
    assert (report.cut.rows, report.cut.captions, report.cut.tokens) == (9, 3, 3 * 66)
    assert EmbeddingDataset(out).metadata["text_tokens_cut"].read().to_pylist() == [66, 0, 0] * 3
    (entry,) = manifest.read_manifests(out, 5)
    assert (entry.captions_cut, entry.tokens_cut) == (3, 198)
    assert verify(out, shards.DEEP).whole
    assert describe(out).cut == report.cut
    assert "3 of 9 (33.3%), 198 tokens" in embedpipe("info", out).stdout
    assert json.loads(embedpipe("info", out, "--json").stdout)["cut"] == {"rows": 9, "captions": 3, "tokens": 198}
    assert embedpipe("info", out, "--html", tmp_path / "page.html").exit_code == 0
    assert "3 of 9 (33.3%), 198 tokens" in (tmp_path / "page.html").read_text()
    again = encode(source, out, encode_config(stage={"text_tokens": text_tokens}))
    assert (again.report.tasks, again.cut) == (0, report.cut)


def test_encode_says_so_in_one_line(source, tmp_path, tiny_model, embedpipe):
    result = embedpipe("encode", source, tmp_path / "emb", "--model", tiny_model, "--gpus", 0)
    assert result.exit_code == 0, result.stderr
    assert "note: 3 captions (33.3%) were longer than 16 tokens; 198 tokens cut" in result.stderr
    result = embedpipe("encode", source, tmp_path / "emb", "--model", tiny_model, "--gpus", 0, "--json")
    told = json.loads(result.stdout)
    assert (told["cut"], told["context_length"]) == ({"rows": 9, "captions": 3, "tokens": 198}, 16)


def test_captions_that_are_cut_can_be_rejected(source, tmp_path, tiny_model, encode_config, embedpipe):
    out = tmp_path / "emb"
    result = embedpipe("encode", source, out, "--model", tiny_model, "--gpus", 0, "--reject-cut-captions")
    assert result.exit_code == 0, result.stderr
    assert "caption_too_long" in result.stdout
    found = EmbeddingDataset(str(out))
    assert found.keys() == ["1", "2", "4", "5", "7", "8"]
    assert found.metadata["text_tokens_cut"].read().to_pylist() == [0] * 6
    import pyarrow.parquet as pq

    errors = pq.read_table(out / "errors" / "errors_00000.parquet").to_pylist()
    assert [(row["key"], row["stage"], row["error_class"], row["message"]) for row in errors] == [
        (key, "encode", "caption_too_long", "66 tokens more than 16") for key in ("0", "3", "6")
    ]
    (entry,) = manifest.read_manifests(str(out), 5)
    assert (entry.rejects, entry.captions_cut, entry.tokens_cut) == ({"caption_too_long": 3}, 0, 0)
    assert verify(str(out), shards.DEEP).whole
    limited = embedpipe(
        "encode", source, out, "--model", tiny_model, "--gpus", 0, "--reject-cut-captions", "--max-rejects", 2
    )
    assert limited.exit_code == 3
    with pytest.raises(RunMismatch, match="reject_cut_captions was true, now not set"):
        encode(source, str(out), encode_config())


def test_what_cannot_be_rejected_is_refused(source, tmp_path, encode_config, monkeypatch):
    with pytest.raises(OptionError, match="no caption is cut without texts"):
        encode(source, str(tmp_path / "a"), encode_config(stage={"texts": False, "reject_cut_captions": True}))
    monkeypatch.setattr("embedpipe.encode.text_tower.cut_counter", lambda tokenizer: None)
    with pytest.raises(ModelError, match="does not tell how many tokens.*Drop `reject_cut_captions`"):
        encode(source, str(tmp_path / "b"), encode_config(stage={"reject_cut_captions": True}))
    assert not (tmp_path / "b" / "embedpipe.json").exists()
    report = encode(source, str(tmp_path / "c"), encode_config())
    assert report.cut.rows == 0
    (entry,) = manifest.read_manifests(str(tmp_path / "c"), 5)
    assert (entry.captions_cut, entry.tokens_cut) == (None, None)
    assert EmbeddingDataset(str(tmp_path / "c")).metadata["text_tokens_cut"].read().null_count == 9
    assert describe(str(tmp_path / "c")).cut is None
    assert verify(str(tmp_path / "c"), shards.DEEP).whole


def test_images_alone_have_no_counts(source, tmp_path, encode_config):
    encode(source, str(tmp_path), encode_config(stage={"texts": False}))
    assert EmbeddingDataset(str(tmp_path)).metadata["text_tokens_cut"].read().null_count == 9
    assert describe(str(tmp_path)).cut is None


def test_rows_are_chosen_by_it_and_counted_anew(source, tmp_path, encode_config, embedpipe):
    emb, out = str(tmp_path / "emb"), str(tmp_path / "out")
    encode(source, emb, encode_config())
    where = "text_tokens_cut = 0 or key = '3'"
    result = embedpipe("filter", emb, out, "--where", where, "--materialise")
    assert result.exit_code == 0, result.stderr
    assert EmbeddingDataset(out).metadata["text_tokens_cut"].read().to_pylist() == [0, 0, 66, 0, 0, 0, 0]
    (entry,) = manifest.read_manifests(out, 5)
    assert (entry.captions_cut, entry.tokens_cut) == (1, 66)
    assert verify(out, shards.DEEP).whole


def test_verify_finds_counts_that_the_manifest_does_not_know(source, tmp_path, encode_config):
    encode(source, str(tmp_path / "emb"), encode_config())
    shards.edit(tmp_path / "emb" / "manifest" / "00000.json", tokens_cut=197)
    (fault,) = verify(str(tmp_path / "emb"), shards.DEEP).faults
    assert "text_tokens_cut: 198 tokens of 3 captions, but the manifest says 197 of 3" in fault.what


def test_a_query_that_is_cut_is_told(source, tmp_path, encode_config, embedpipe):
    encode(source, str(tmp_path / "emb"), encode_config())
    result = embedpipe("search", tmp_path / "emb", LONG, "--exact")
    assert result.exit_code == 0, result.stderr
    assert "note: 1 text was longer than 16 tokens; 66 tokens cut" in result.stderr
    (tmp_path / "many.txt").write_text(f"{LONG}\na cat\n{LONG}b\n")
    result = embedpipe("search", tmp_path / "emb", "--queries", tmp_path / "many.txt", "--exact")
    assert "note: 2 texts (66.7%) were longer than 16 tokens; 133 tokens cut" in result.stderr
    assert "cut" not in embedpipe("search", tmp_path / "emb", "a cat", "--exact").stderr


def test_towers_of_coca_and_custom_text_count_too(tmp_path):
    for name in ("coca", "custom_text"):
        encoder = load_encoder(EncoderConfig(tiny_clip.write(tmp_path / name, tiny_clip.CONFIGS[name])))
        context = encoder.card.context_length
        assert encoder.counts_cut_tokens
        made = encoder.texts([LONG, "a cat"])
        assert made.tokens_cut.tolist() == [82 - context, 0]
        assert encoder.text_states([LONG, "a cat"]).embeddings.tokens_cut.tolist() == [82 - context, 0]
