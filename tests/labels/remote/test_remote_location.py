"""Which URLs are fetched from, and what of them is ever shown."""

from pathlib import Path

import pytest
from refusals import refused

from ltd_pipe.errors import LocationError
from ltd_pipe.labels.remote import is_url, parse_location

IDENTITY = "0123456789abcdef" * 4

ACCEPTED = {
    "https://example.org/a/labels.zarr/": "https://example.org/a/labels.zarr",
    "HTTPS://example.org:8443/labels.zarr": "https://example.org:8443/labels.zarr",
    "http://[::1]:80/labels.zarr": "http://[::1]:80/labels.zarr",
    "https://example.org/l.zarr?sig=a%2Fb": "https://example.org/l.zarr?sig=a%2Fb",
    "s3://bucket/labels.zarr": "s3://bucket/labels.zarr",
    "gs://bucket/labels.zarr": "gs://bucket/labels.zarr",
    "hf://datasets/user/name": "hf://datasets/user/name",
    "hf://datasets/user/name@v1/labels.zarr": "hf://datasets/user/name@v1/labels.zarr",
    "file:///srv/labels.zarr": "file:///srv/labels.zarr",
    f"https://example.org/l.zarr#sha256={IDENTITY}": "https://example.org/l.zarr",
}


@pytest.mark.parametrize(("text", "url"), ACCEPTED.items(), ids=list(ACCEPTED))
def test_urls_of_these_kinds_are_taken(text, url):
    """Without the identity and a slash at the end."""
    assert parse_location(text).url == url
    assert is_url(text)


REFUSED = {
    "labels.zarr": "is no URL that stores are fetched from",
    "ftp://example.org/labels.zarr": "is no URL that stores are fetched from",
    "memory://labels.zarr": "is no URL that stores are fetched from",
    "simplecache::s3://bucket/x": "is no URL that stores are fetched from",
    "javascript:alert(1)": "is no URL that stores are fetched from",
    "https://": "is no URL that stores are fetched from",
    "https://example.org:port/x": "is no valid URL",
    "https://[::1/x": "is no valid URL",
    "https://example.org/a b": "has characters that no URL has",
    "https://example.org/a\nb": "has characters that no URL has",
    "file:///srv/a%00b": "has characters that no URL has",
    "https://example.org\\@evil.org/": "has characters that no URL has",
    "s3://user:secret@bucket/x": "s3:// has no user and no query",
    "s3://bucket/x?versionId=3": "s3:// has no user and no query",
    "hf://datasets/name": "names no repository",
    "hf://datasets/user/name@/x": "names no repository",
    "https://example.org/x#part": "after '#'",
    "https://example.org/x#sha256=0123456789ab": "the identity to expect",
    f"https://example.org/x#sha256={'g' * 64}": "the identity to expect",
    f"https://example.org/x#sha256={'a' * 65}": "the identity to expect",
}


@pytest.mark.parametrize(("text", "what"), REFUSED.items(), ids=list(REFUSED))
def test_what_is_no_store_elsewhere_is_refused(text, what):
    """One line, in which no secret stands."""
    with pytest.raises(LocationError) as caught:
        parse_location(text)
    assert caught.value.what == what
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:pa#ss@127.0.0.1:1/secret",
        "http://user:12345#secret@example.org/x",
        "https://user:12345?secret@example.org/x",
        "https://example.org/x?token=a@secret",
        "secret?@",
    ],
)
def test_nothing_of_a_password_is_shown(text):
    """Not even of one whose signs were not written as a URL has them."""
    with refused(LocationError, what="has an @ after a ? or a #", remedy="%23") as caught:
        parse_location(text)
    said = str(caught.value)
    assert not any(part in said for part in ("secret", "user:", "12345", "pa#"))


def test_user_password_query_and_fragment_are_never_shown():
    """What may be printed and logged."""
    location = parse_location(f"https://me:pw@example.org:81/x?sig=pw#sha256={IDENTITY}")
    assert str(location) == "https://example.org:81/x"


def test_a_folder_is_no_url(tmp_path):
    """Also one with a colon in its name."""
    assert not any(map(is_url, ["labels.zarr", "/a/b", "./s3:/x", "c:x", str(tmp_path)]))


@pytest.mark.parametrize("name", ["plain", "sp ace", "50%", "%41", "a#b?c", "ü", "\udcff"])
def test_a_folder_is_where_its_uri_says(name):
    """As `Path.as_uri` writes it; the URL that is shown stays as it was given."""
    folder = Path("/srv") / name / "labels.zarr"
    location = parse_location(folder.as_uri())
    assert (location.folder, str(location)) == (folder, folder.as_uri())


def test_other_places_have_no_folder_and_a_plain_path_is_taken_as_it_is():
    """A percent sign that begins no code is one."""
    assert parse_location("s3://bucket/a%20b").folder is None
    assert parse_location("file:///srv/100%/ü").folder == Path("/srv/100%/ü")


@pytest.mark.parametrize("given", [IDENTITY, IDENTITY[:32], IDENTITY.upper(), ""])
def test_an_identity_may_be_given_apart(given):
    """Whole, or its first half at least; case does not matter."""
    assert parse_location("https://example.org/x", given).identity == given.lower()


def test_two_identities_must_agree():
    """One in the URL, one beside it."""
    url = f"https://example.org/x#sha256={IDENTITY}"
    assert parse_location(url, IDENTITY).identity == IDENTITY
    with refused(LocationError, where="https://example.org/x", what="different"):
        parse_location(url, "f" * 64)
