"""What an image file says of its own rights: read before the image is encoded anew, which loses it."""

from .record import COLUMNS, MODES, OBEY, OFF, RECORD, Rights, read_rights

__all__ = ["COLUMNS", "MODES", "OBEY", "OFF", "RECORD", "Rights", "read_rights"]
