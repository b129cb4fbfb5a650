"""No secret of a url is stored or printed, and a url that is signed anew is the same one."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.errors import EmbedpipeError, InputError, StorageFailed
from embedpipe.filesystem import asking
from embedpipe.redact import redacted, redacted_values, without_user_of

SECRET = st.text(string.ascii_letters + string.digits + "%+/=_-.~", min_size=8, max_size=40).map("S3CR3T".__add__)
SCHEME = st.sampled_from(["http", "https", "ftp", "FTP", "sftp", "s3", "webhdfs", "smb", "simplecache::https"])
NAMES = st.sampled_from(
    [
        "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "x-amz-signature", "X-Amz-Date",
        "X-Goog-Signature", "X-OSS-Signature", "sig", "token", "Signature", "AWSAccessKeyId", "access_token", "key",
        "api_key", "apikey", "api-key", "auth_token", "password", "pwd", "client_secret", "Policy", "Key-Pair-Id",
        "GoogleAccessId", "sessionid", "jwt", "hmac", "refresh_token", "subscription-key", "Expires",
    ]
)  # fmt: skip
BEFORE = st.sampled_from(["", "a=1&", "page=2&size=3&"])
AFTER = st.sampled_from(["", "&b=2", "#end", " and more", "' in text", '", "next": 1'])


@given(SCHEME, st.text(string.ascii_letters, max_size=5), SECRET, AFTER)
def test_no_password_of_a_url_is_left(scheme, user, secret, after):
    secret = secret.replace("/", "")
    text = redacted(f"at {scheme}://{user}:{secret}@host.example/path.tar{after}")
    assert "S3CR3T" not in text
    assert "@host.example/path.tar" in text
    assert text.endswith(after)
    assert redacted(text) == text


@given(BEFORE, NAMES, SECRET, AFTER)
def test_no_token_or_signature_of_a_url_is_left(before, name, secret, after):
    text = redacted(f"at https://host/x.tar?{before}{name}={secret}{after}")
    assert "S3CR3T" not in text
    assert text == f"at https://host/x.tar?{before}{name}=***{after}"
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "https://b.s3.amazonaws.com/x.tar?X-Amz-Algorithm=A&X-Amz-Credential=c1&X-Amz-Date=20260101T0&"
            "X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature=aa",
            "https://b.s3.amazonaws.com/x.tar?X-Amz-Algorithm=A&X-Amz-Credential=c2&X-Amz-Date=20260201T0&"
            "X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=bb",
        ),
        (
            "https://a.blob.core.windows.net/c/x?sv=2022-11-02&st=2026&se=2027&sr=b&sp=r&sig=aa%3D",
            "https://a.blob.core.windows.net/c/x?sv=2023-01-03&st=2027&se=2028&sr=b&sp=r&sig=bb%3D",
        ),
        ("https://c.cloudfront.net/x?Expires=1&Signature=a&Key-Pair-Id=K", "https://c.cloudfront.net/x?Expires=2&Signature=b&Key-Pair-Id=L"),
        ("ftp://me:old@host/x", "ftp://you:new@host/x"),
    ],
)  # fmt: skip
def test_a_url_signed_anew_is_the_same(one, other):
    assert redacted(one) == redacted(other)
    assert redacted(one) != redacted(one.replace("/x", "/y"))


@pytest.mark.parametrize(
    "text",
    [
        "abfs://container@account.dfs.core.windows.net/x",
        "https://host/x?page=2&sv=1&se=2&keyword=cat&monkey=3&design=4",
        "mail me@host or see http://host/a",
        "write it as key=value, for example optim.lr=1e-4",
        "C:\\x, a@b, --set key=1, tokens: 77, key 000000012",
        "Basic usage: text tokens of keys",
        "s3://bucket/key=1/x.parquet",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer S3CR3Tabcdef",
        "InvalidAccessKeyId: AKIA0123456789S3CR3T",
        "storage_options={'key': 'x', 'secret': 'S3CR3T', 'client_kwargs': {}}",
        "AWS_SECRET_ACCESS_KEY=S3CR3T",
        '{"aws_session_token": "S3CR3T"}',
        "<AWSAccessKeyId>S3CR3T</AWSAccessKeyId>",
        "https://S3CR3T@github.com/x",
        "AccountKey=x;account_key=S3CR3T;",
    ],
)
def test_messages_of_servers_and_libraries(text):
    assert "S3CR3T" not in redacted(text)


def test_errors_are_redacted_where_they_are_made():
    problem = InputError("ftp://me:S3CR3T@host/x: no such file", "Give ftp://me:S3CR3T@host/y")
    assert "S3CR3T" not in str(problem) + problem.what + problem.remedy + repr(problem)
    assert issubclass(InputError, EmbedpipeError)


def test_values_at_any_depth():
    found = redacted_values({"a": ["http://u:p@h/", ("http://u:p@h/", 1, None)], "token": {"b": "x"}})
    assert found == {"a": ["http://***@h/", ("http://***@h/", 1, None)], "token": {"b": "x"}}


def test_what_a_library_says_of_a_url_has_no_user_of_it():
    """botocore, say, takes user and password of s3://KEY:SECRET@bucket for a part of the bucket's name."""
    location = "s3://KEY:S3CR3T@bucket/x"
    with pytest.raises(StorageFailed) as told, asking(location):
        raise ValueError('Invalid bucket name "KEY:S3CR3T@bucket": S3CR3T is none of ours')
    assert "KEY" not in redacted(str(told.value))
    assert "S3CR3T" not in redacted(str(told.value))
    assert without_user_of("s3://bucket/a@b:c", "bucket a@b:c") == "bucket a@b:c"
