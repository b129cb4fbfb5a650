"""Damaged images of every format: nothing is raised, crashes a worker or costs more than it may."""

import zlib

import pytest

from tools import fuzz_images
from tools.image_mutations import mutated, originals


@pytest.fixture(scope="module")
def whole():
    return originals()


def test_undamaged_images_of_every_format_are_decoded(whole):
    undecoded = {}
    for image in whole:
        found = fuzz_images.try_both(image.data)
        assert not found.problem
        undecoded |= {(image.name, side): said for side, said in found.outcomes.items() if said != "fine"}
    # Floating point has no known range; nobody stores a DIB, a BMP without its header, or sends a PPM.
    assert {name for name, _ in undecoded} <= {"tiff float", "dib", "ppm"}


def test_the_same_number_makes_the_same_image_and_others_make_others(whole):
    made = {number: zlib.crc32(mutated(whole, number).data) for number in range(200)}
    again, other = originals(), {number: zlib.crc32(mutated(whole, number, seed=1).data) for number in range(200)}
    assert [number for number in made if zlib.crc32(mutated(again, number).data) != made[number]] == []
    assert len(set(made.values())) > 190
    assert sum(made[number] == other[number] for number in made) < 10


def test_a_few_damaged_images():
    found = fuzz_images.fuzz(range(300), seed=1)
    assert found.found == []
    assert set(found.outcomes["encode"]) > {"fine"}


@pytest.mark.slow
def test_many_damaged_images():
    found = fuzz_images.fuzz(range(10**9), seed=2, cpu_seconds=50)
    assert found.found == []
    assert found.tried > 1000
