"""Exceptions that decoding untrusted bytes may raise."""

import msgspec

MALFORMED = (msgspec.DecodeError, UnicodeError, RecursionError)
"""Of msgspec's JSON and MessagePack: not of that format or type, text that is not UTF-8, nested too deeply."""
