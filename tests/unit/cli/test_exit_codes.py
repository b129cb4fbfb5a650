"""2: the command cannot be meant, whatever it is given. 1: it can, and what it is given does not go with it."""

import pytest

IMPOSSIBLE = """
fetch urls.csv out --resize-mode crop
fetch urls.csv out --format gif
fetch urls.csv out --only timeout
encode {shards} out --model {model} --precision fp12 --gpus 0
encode {shards} out --model {model} --shard-of 5
encode {shards} out --model {model} --no-image --no-text --dry-run
index {emb} --type tree --dry-run
search {emb} soup --key a
dedup {emb} out --threshold 7
dedup {emb} out --keep best
filter {emb} out
filter {emb} out --where ((
export {emb} out --to nowhere
train-clip {shards} out --preset nothing
train-clip {shards} out --set train.steps=0
train-clip {shards} out --log nothing
train-prior {emb} out --preset nothing
train-prior {emb} out --prior nothing
train-prior {emb} out --set nothing=1
train-prior {emb} out --set diffusion.predicts=nothing
train-vae {shards} out --preset nothing
train-vae {shards} out --set vae.image_size=18
train-vae {shards} out --set vae.channels=1
train-decoder {shards} {emb} out --preset nothing
train-decoder {shards} {emb} out --sizes 16,8
train-decoder {shards} {emb} out --sizes 8,x
train-decoder {shards} {emb} out --sizes 9,16
train-decoder {shards} {emb} out --dims 8,8,8,8
train-decoder {shards} {emb} out --stage 7
train-decoder {shards} {emb} out --objective nothing
generate --decoder {shards}
generate soup --decoder {shards} --from-image a --interpolate b c
generate soup --decoder {shards} --out soup.jpg
generate soup --decoder {shards} --steps many
"""
UNFITTING = """
fetch gone.csv out
encode gone out --model {model}
encode {shards} out --model gone/model
encode {shards} out --model ViT-B-33
verify gone
index gone
search gone soup
filter {emb} out --where lable=1
export gone out --to hf
train-clip gone out --preset vit-tiny
train-clip {shards} out --preset vit-tiny --split-column lable
train-prior gone out
train-prior {emb} out --set train.batch_size=5000
train-vae gone out
train-decoder {shards} gone out
train-decoder {shards} {emb} out --text-tokens
evaluate gone {emb}
sample-prior {emb} out --prior gone
generate soup --decoder gone --prior gone
info gone
"""
TABLE = [(line, code) for code, lines in ((2, IMPOSSIBLE), (1, UNFITTING)) for line in lines.strip().splitlines()]


@pytest.mark.parametrize(("line", "code"), TABLE, ids=[line for line, _ in TABLE])
def test_what_cannot_be_meant_is_2_and_what_does_not_fit_is_1(
    line, code, embedpipe, encoded_once, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shards, emb = encoded_once
    result = embedpipe(*line.format(shards=shards, emb=emb, model=tiny_model).split())
    assert (result.exit_code, "internal error" in result.stderr) == (code, False), result.stderr
    if code == 2 or line.startswith("encode"):
        assert list(tmp_path.iterdir()) == [], "refused, and something was left behind"
