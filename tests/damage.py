"""Damages to the files of an output, drawn from a seed: what disks, copies and people do to them."""

from pathlib import Path

KINDS = ("flip", "flip", "flips", "cut", "grow", "remove", "swap", "swap any", "copy", "zero", "empty", "folder")


def files_of(folder, without=(".lock",)):
    """All files of an output that it cannot do without, sorted."""
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return [path for path in found if path.name not in without and not {".fetch", "reports"} & set(path.parts)]


def damage(folder, rng):
    """Do one thing to a file of `folder`, or two that get each other's place. Returns (kind, [paths])."""
    files = files_of(folder)
    while True:
        kind, path = rng.choice(KINDS), rng.choice(files)
        others = [p for p in files if p != path and (p.parent == path.parent or kind == "swap any")]
        other = rng.choice(others) if others else None
        if _do(kind, path, other, rng):
            return kind, [path, other] if kind.startswith("swap") else [path]


def _do(kind, path, other, rng):
    """Whether there is such a damage to that file, and it made a difference."""
    data = path.read_bytes()
    if kind in ("flip", "flips"):
        changed = bytearray(data)
        for _ in range(1 if kind == "flip" else 16):
            changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
        return bytes(changed) != data
    if kind == "zero":
        start = rng.randrange(len(data))
        changed = data[:start] + bytes(len(data[start : start + 512])) + data[start + 512 :]
        path.write_bytes(changed)
        return changed != data
    if kind in ("swap", "swap any", "copy"):
        if other is None or other.read_bytes() == data:
            return False
        path.write_bytes(other.read_bytes())
        if kind != "copy":
            other.write_bytes(data)
        return True
    if kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "grow":
        path.write_bytes(data + bytes(rng.randrange(1, 100)))
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
    return True
