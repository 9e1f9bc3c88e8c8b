"""One masker: which names are secret, and what is left of texts and values."""

from __future__ import annotations

import pytest

from difc_ray.secrets import is_secret, masked, masked_values, secret_texts


@pytest.mark.parametrize(
    "name",
    [
        "token", "hub_token", "hub.token", "HF_TOKEN", "accessToken", "secret", "client-secret", "db_password",
        "passwd", "passphrase", "credentials.user", "key", "api_key", "apiKey", "apikey", "api_keys",
        "OPENAI_API_KEY_PROD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "X-Api-Key", "private_key_pem", "KEY_2",
        "dataset_options.list.key",
    ],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "monkey", "key_dim", "attention.key_dim", "keyframes", "keyboard", "tokenizer", "TOKENIZERS_PARALLELISM",
        "n_tokens", "max_tokens", "dataset_options.n_keys", "seed", "PWD", "compass",
    ],
)  # fmt: skip
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:pw@h:5000/x refused", "http://***@h:5000/x refused"),
        ("http://tok@h", "http://***@h"),
        ("http://u:p/w@h:1", "http://***@h:1"),
        ("postgresql+psycopg2://u:p@w@h/db", "postgresql+psycopg2://***@h/db"),
        ("http://h/?token=abc", "http://h/?token=***"),
        ("http://h/?id=3;token=abc", "http://h/?id=3;token=***"),
        ("http://h/?token=ab;c;id=3", "http://h/?token=***;id=3"),
        ("http://h/#access_token=abc&x=1", "http://h/#access_token=***&x=1"),
        ("http://h/?AWSAccessKeyId=abc", "http://h/?AWSAccessKeyId=***"),
        ("http://h/?key_dim=8&monkey=1", "http://h/?key_dim=8&monkey=1"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("mail me@here", "mail me@here"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_values_at_any_depth() -> None:
    tree = {
        "list": [{"key": "a"}, ("http://u:p@h", 3)], "deep": {"password": {"of": "b"}, "pin": 4}, "api_key": 7,
        "use_token": True, "token": None, "secret": "", "key_dim": 8,
    }  # fmt: skip
    assert masked_values(tree) == {
        "list": [{"key": "***"}, ("http://***@h", 3)], "deep": {"password": "***", "pin": 4}, "api_key": "***",
        "use_token": True, "token": None, "secret": "", "key_dim": 8,
    }  # fmt: skip
    assert masked_values("x", "a.token") == "***"


def test_secret_texts_are_known_by_their_names() -> None:
    environ = {"MLFLOW_TRACKING_PASSWORD": "tracking-pw", "RAY_AUTH_TOKEN_PATH": "/home/me/token", "HOME": "/home/me"}
    settings = {"api_key": "sesame-open", "nested": [{"credentials": {"user": "alibaba"}}], "n": 7, "token": True}
    assert secret_texts(settings, environ) == {"tracking-pw", "sesame-open", "alibaba"}
    assert secret_texts(settings, {"TOKEN": "short"}) == {"sesame-open", "alibaba"}
