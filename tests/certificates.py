"""Certificates for servers on loopback: a good one, and such as must be refused."""

import datetime

import trustme


def make(folder):
    """PEM files in `folder`: ({name: key and chain}, the authority's file).

    good: for 127.0.0.1 and localhost. expired: last year's. elsewhere: for another host. unknown: by an authority that
    is in no file. selfsigned: by itself.
    """
    authority, stranger = trustme.CA(), trustme.CA()
    last_year = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=300)
    made = {
        "good": authority.issue_cert("127.0.0.1", "localhost"),
        "expired": authority.issue_cert(
            "127.0.0.1", not_before=last_year - datetime.timedelta(days=30), not_after=last_year
        ),
        "elsewhere": authority.issue_cert("example.org"),
        "unknown": stranger.issue_cert("127.0.0.1"),
    }
    for name, certificate in made.items():
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{name}.pem"))
    (folder / "selfsigned.pem").write_bytes(stranger.private_key_pem.bytes() + stranger.cert_pem.bytes())
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    return {name: str(folder / f"{name}.pem") for name in [*made, "selfsigned"]}, str(folder / "authority.pem")
