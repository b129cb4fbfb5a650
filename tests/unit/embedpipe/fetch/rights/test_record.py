"""What is read of the rights in a file: against Exiv2, which wrote them, and against damage."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.fetch.rights import COLUMNS, Rights, read_rights
from tests import stated_rights as made

WRITTEN = {
    "Xmp.dc.creator": ["Ann Ä.", "Bob"],
    "Xmp.dc.rights": {'lang="x-default"': "© 2026 Ann", 'lang="de-DE"': "Alle Rechte"},
    "Xmp.photoshop.Credit": "Agency",
    "Xmp.xmpRights.WebStatement": "https://example.org/licence",
    "Xmp.xmpRights.UsageTerms": {'lang="x-default"': "Ask first"},
    "Xmp.plus.DataMining": f"{made.VOCABULARY}DMI-ALLOWED",
    "Xmp.iptcExt.DigitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
}
READ = Rights(
    "Ann Ä.; Bob",
    "Agency",
    "© 2026 Ann",
    "https://example.org/licence",
    "Ask first",
    "DMI-ALLOWED",
    "trainedAlgorithmicMedia",
)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_that_another_program_wrote(format):
    assert read_rights(made.with_metadata(made.image(format), WRITTEN)) == READ


@pytest.mark.parametrize("format", ["JPEG", "TIFF", "PNG"])
def test_iptc_that_another_program_wrote(format):
    said = {"Iptc.Envelope.CharacterSet": "\x1b%G"} if format == "JPEG" else {}
    said |= {
        "Iptc.Application2.Byline": ["Ann Ä.", "Bob"],
        "Iptc.Application2.Credit": "Agency",
        "Iptc.Application2.Copyright": "© 2026 Ann",
    }
    assert read_rights(made.with_metadata(made.image(format), iptc=said)) == Rights(
        "Ann Ä.; Bob", "Agency", "© 2026 Ann"
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_that_another_program_wrote(format):
    said = {"Exif.Image.Artist": "Ann Ä.", "Exif.Image.Copyright": "© 2026 Ann"}
    assert read_rights(made.with_metadata(made.image(format), exif=said)) == Rights("Ann Ä.", None, "© 2026 Ann")


def test_exif_that_pillow_wrote_in_boxes():
    from PIL import Image

    exif = Image.Exif()
    exif[315], exif[33_432] = "Ann", "2026"
    found = read_rights(made.image("AVIF", exif=exif, xmp=made.prohibited()))
    assert (found.rights_creator, found.rights_copyright) == ("Ann", "2026")
    assert found.opt_out == "plus:DataMining: DMI-PROHIBITED"


def test_xmp_goes_before_iptc_and_that_before_exif():
    said = made.with_metadata(
        made.image(),
        {"Xmp.dc.creator": ["of XMP"]},
        {"Iptc.Application2.Byline": ["of IPTC"], "Iptc.Application2.Copyright": "© IPTC"},
        {"Exif.Image.Artist": "of EXIF", "Exif.Image.Copyright": "© EXIF"},
    )
    assert read_rights(said) == Rights("of XMP", None, "© IPTC")


@pytest.mark.parametrize(
    "put",
    [
        made.jpeg_xmp,
        made.png_xmp,
        lambda xmp: made.png_xmp(xmp, packed=True),
        made.gif_xmp,
        lambda xmp: made.webp_with((b"XMP ", xmp)),
        lambda xmp: made.boxes_with("be7acfcb97a942e89c71999491e3afac", xmp),
    ],
    ids=["jpeg", "png", "png-packed", "gif", "webp", "boxes"],
)
def test_every_container_of_xmp(put):
    assert read_rights(put(made.prohibited())).opt_out == "plus:DataMining: DMI-PROHIBITED"
    assert read_rights(put(made.packet("<cc:license>https://x</cc:license>"))) == Rights(rights_licence="https://x")


def test_extended_xmp_is_put_together():
    xmp = made.packet(
        f"<dc:description>{'x' * 70_000}</dc:description>", f'plus:DataMining="{made.VOCABULARY}DMI-PROHIBITED"'
    )
    head = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32
    pieces = [xmp[at : at + 40_000] for at in range(0, len(xmp), 40_000)]
    segments = [
        (0xE1, head + struct.pack(">II", len(xmp), 40_000 * i) + piece)
        for i, piece in reversed(list(enumerate(pieces)))
    ]
    assert read_rights(made.jpeg_with(*segments)).rights_data_mining == "DMI-PROHIBITED"


RESERVED = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


@pytest.mark.parametrize(
    ("inside", "attributes"),
    [
        (f"<plus:DataMining>{made.VOCABULARY}DMI-PROHIBITED</plus:DataMining>", ""),
        (f'<plus:DataMining rdf:resource="{made.VOCABULARY}DMI-PROHIBITED"/>', ""),
        ("<plus:DataMining>DMI-PROHIBITED</plus:DataMining>", ""),
        (f"<plus:DataMining><rdf:Alt><rdf:li>{made.VOCABULARY}DMI-PROHIBITED</rdf:li></rdf:Alt></plus:DataMining>", ""),
        (
            '<plus:DataMining rdf:parseType="Resource"><rdf:value>DMI-PROHIBITED</rdf:value><dc:type>x</dc:type>'
            "</plus:DataMining>",
            "",
        ),
        ("", f'plus:DataMining="{made.VOCABULARY}DMI-PROHIBITED"'),
    ],
)
def test_every_spelling_of_rdf(inside, attributes):
    found = read_rights(made.jpeg_xmp(made.packet(inside, attributes)))
    assert (found.rights_data_mining, found.opt_out) == ("DMI-PROHIBITED", "plus:DataMining: DMI-PROHIBITED")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_of_a_packet(encoding):
    said = made.prohibited().decode().replace("\ufeff", "")
    if encoding == "utf-16-le":
        said = "\ufeff" + said
    assert read_rights(made.jpeg_xmp(said.encode(encoding))).opt_out


@pytest.mark.parametrize(
    ("said", "opt_out"),
    [
        ({"Xmp.plus.DataMining": f"{made.VOCABULARY}DMI-UNSPECIFIED"}, None),
        ({"Xmp.plus.DataMining": f"{made.VOCABULARY}DMI-ALLOWED"}, None),
        *(
            (
                {"Xmp.plus.DataMining": f"{made.VOCABULARY}DMI-PROHIBITED{more}"},
                f"plus:DataMining: DMI-PROHIBITED{more}",
            )
            for more in ("", "-AIMLTRAINING", "-GENAIMLTRAINING", "-EXCEPTSEARCHENGINEINDEXING", "-SEECONSTRAINT")
        ),
        ({"Xmp.dc.subject": ["cat", "NoAI"]}, "dc:subject: noai"),
        ({"Xmp.dc.subject": ["noaise", "casino-noai"]}, None),
        ({"Xmp.photoshop.Instructions": "Please: noimageai, thank you"}, "photoshop:Instructions: noimageai"),
        ({"Xmp.xmpRights.UsageTerms": {'lang="x-default"': "noml"}}, "xmpRights:UsageTerms: noml"),
    ],
)
def test_what_opts_out(said, opt_out):
    assert read_rights(made.with_metadata(made.image(), said)).opt_out == opt_out


def test_more_that_opts_out():
    assert read_rights(made.jpeg_xmp(made.packet(attributes='tdm:reservation="1"'))).opt_out == "tdm:reservation: 1"
    assert read_rights(made.jpeg_xmp(made.packet(attributes='tdm:reservation="0"'))).opt_out is None
    keywords = made.with_metadata(made.image(), iptc={"Iptc.Application2.Keywords": ["cat", "noai"]})
    assert read_rights(keywords).opt_out == "dc:subject: noai"


def test_licensor_is_read_and_what_the_image_was_made_from_is_not():
    licensor = (
        "<plus:Licensor><rdf:Seq><rdf:li rdf:parseType='Resource'><plus:LicensorURL>https://buy</plus:LicensorURL>"
        "</rdf:li></rdf:Seq></plus:Licensor>"
    )
    pantry = (
        "<xmpMM:Pantry><rdf:Bag><rdf:li><rdf:Description dc:creator='another'><dc:rights>theirs</dc:rights>"
        "<plus:DataMining>DMI-PROHIBITED</plus:DataMining></rdf:Description></rdf:li></rdf:Bag></xmpMM:Pantry>"
    )
    assert read_rights(made.jpeg_xmp(made.packet(licensor + pantry))) == Rights(rights_licence="https://buy")


@pytest.mark.parametrize(
    "data",
    [
        made.jpeg_with((0xEB, b"JP\0\1\0\0\0\1\0\0\0\x20jumb\0\0\0\x18jumdc2pa")),
        made.png_with((b"caBX", b"jumb")),
        made.webp_with((b"C2PA", b"jumb")),
        made.gif_with(b"C2PA_GIF", b"\4jumb\0"),
        made.boxes_with("d8fec3d61b0e483c92975828877ec481", b"manifest"),
    ],
    ids=["jpeg", "png", "webp", "gif", "boxes"],
)
def test_c2pa_is_noticed(data):
    assert read_rights(data) == Rights(has_c2pa=True)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "ICO", "JPEG2000"])
def test_a_plain_file_says_nothing(format):
    assert read_rights(made.image(format)) == Rights()


@pytest.mark.parametrize(
    "xmp",
    [
        b'<!DOCTYPE x [<!ENTITY a "DMI-PROHIBITED">]>' + made.packet("<plus:DataMining>&a;</plus:DataMining>"),
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd">' + made.prohibited(),
        made.prohibited()[:-40],
        made.packet("<plus:DataMining>DMI-PROHIBITED"),
        b"DataMining \xff\xfe",
        b"<" * 5_000 + b"DataMining",
        made.packet("<dc:creator>" + "<rdf:Seq>" * 20_000 + "DataMining"),
    ],
    ids=["entity", "dtd", "cut", "unclosed", "no xml", "brackets", "deep"],
)
def test_declarations_and_damage_are_null(xmp):
    assert read_rights(made.png_xmp(xmp)) == Rights()


def test_texts_are_one_clean_line_of_bounded_length():
    said = made.packet(f"<dc:creator>a\u0308\n\tb{'c' * 5_000}</dc:creator>")
    found = read_rights(made.png_xmp(said)).rights_creator
    assert found.startswith("ä bccc")
    assert len(found) <= 2_000


def test_a_packed_text_is_not_unpacked_without_bounds():
    import zlib

    bomb = zlib.compress(made.prohibited() + b" " * 300_000_000, 1)
    body = b"XML:com.adobe.xmp\0\1\0\0\0" + bomb
    assert read_rights(made.png_with((b"iTXt", body))).opt_out == "plus:DataMining: DMI-PROHIBITED"


WHOLE = [
    made.with_metadata(made.image(format), WRITTEN, exif={"Exif.Image.Artist": "Ann"})
    for format in ("JPEG", "PNG", "WEBP", "TIFF")
] + [
    made.gif_xmp(made.prohibited()),
    made.image("AVIF", xmp=made.prohibited()),
    made.boxes_with("be7acfcb97a942e89c71999491e3afac", made.prohibited()),
]


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 2**32), st.integers(1, 40))
def test_no_damage_raises(which, seed, changes):
    dice = random.Random(seed)
    data = bytearray(WHOLE[which])
    for _ in range(changes):
        data[dice.randrange(4, len(data))] = dice.randrange(256)
    found = read_rights(bytes(data[: dice.randrange(4, len(data)) if dice.random() < 0.3 else len(data)]))
    assert set(found.columns()) == set(COLUMNS.names)
