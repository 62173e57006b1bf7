"""Tokens as people read them: the marks of subwords undone, bytes put together to characters, pieces to words."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

MARKS = ("auto", "none", "wordpiece", "sentencepiece", "bytes", "end")

SPECIAL = re.compile(
    r"\[(CLS|SEP|PAD|MASK|UNK|BOS|EOS)\]|</?s>|<(pad|bos|eos|unk|mask|cls|sep)>|<\|[a-zA-Z0-9_]+\|>|<(start|end)_of_turn>"
)
"""Forms of special tokens, where the caller does not name them."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_KEPT = "\u200c\u200d"  # Joiners that emoji and Persian need.
_SHOWN = {"\n": "↵\n", "\r": "␍", "\t": "→"}
_CLOSING = re.compile(r"[.,;:!?)\]}%…]+|'\w*")


@dataclass(frozen=True)
class Piece:
    """What is shown in one colour.

    Attributes:
        text: printable, but for ``\\n`` behind its own sign.
        tokens: first token and the one behind the last.
        spaced: a space stands before it. begins: it begins a word. special: a special token or padding.
    """

    text: str
    tokens: tuple[int, int]
    spaced: bool = False
    begins: bool = True
    special: bool = False


def pieces(
    tokens: Sequence[str], marks: str = "auto", special: Collection[bool] = (), separator: str = " "
) -> list[Piece]:
    """Readable pieces of one text, in order.

    Args:
        marks: how the tokenizer marks subwords: ``##ing`` (``"wordpiece"``), ``▁word`` (``"sentencepiece"``, with
            ``<0x0A>`` for bytes), ``Ġword`` and GPT-2's alphabet for bytes (``"bytes"``), ``word</w>`` (``"end"``), not
            at all (``"none"``: each token is a word), or ``"auto"``: by what is there.
        special: for each token whether it is special or padding. separator: between tokens without marks.

    Tokens that hold parts of one character become one piece.
    """
    given = list(special) if len(special) else [is_special(token) for token in tokens]
    plain = [token for token, is_it in zip(tokens, given, strict=True) if not is_it]
    kind = marks_of(plain) if marks == "auto" else marks
    if kind in _OF_BYTES:
        found = _of_bytes(tokens, given, _OF_BYTES[kind])
    else:
        found = [Piece(printable(t), (i, i + 1), bool(i), True, s) if s else _one(t, i, kind, bool(separator))
                 for i, (t, s) in enumerate(zip(tokens, given, strict=True))]  # fmt: skip
        if kind == "end":
            found = _behind_ends(found, tokens)
    found = [_attached(piece) if kind == "wordpiece" else piece for piece in found]
    return [replace(piece, spaced=False) if i == 0 else piece for i, piece in enumerate(found)]


def joined(found: Sequence[Piece]) -> list[Piece]:
    """The pieces of each word as one; special tokens stay alone."""
    words: list[Piece] = []
    for piece in found:
        last = words[-1] if words else None
        if last is None or piece.begins or piece.special or last.special or last.text.endswith("\n"):
            words.append(piece)
        else:
            words[-1] = replace(last, text=last.text + piece.text, tokens=(last.tokens[0], piece.tokens[1]))
    return words


def folded(found: Sequence[Piece]) -> list[Piece]:
    """Three and more equal special tokens in a row, such as padding, as one piece."""
    kept: list[Piece] = []
    place = 0
    while place < len(found):
        end = place + 1
        while end < len(found) and found[place].special and found[end].special and found[end].text == found[place].text:
            end += 1
        run = found[place:end]
        one = replace(run[0], text=f"{run[0].text} ×{len(run)}", tokens=(run[0].tokens[0], run[-1].tokens[1]))
        kept += [one] if len(run) > 2 else run
        place = end
    return kept


def is_special(token: str) -> bool:
    """Whether a token has the form of a special one: ``[CLS]``, ``</s>``, ``<|endoftext|>``, …"""
    return SPECIAL.fullmatch(token) is not None


def printable(text: str) -> str:
    """Nothing that moves a cursor, turns the direction of a line or hides: such characters as escapes."""
    return "".join(c if c.isprintable() or c in _KEPT else c.encode("unicode_escape").decode() for c in text)


def marks_of(tokens: Iterable[str]) -> str:
    """Which of :data:`MARKS` most tokens of a text, or of a vocabulary, have; ``"none"`` if none has any."""
    counts = dict.fromkeys(("bytes", "sentencepiece", "wordpiece", "end"), 0)
    for token in tokens:
        counts["bytes"] += token.startswith(("Ġ", "Ċ"))
        counts["sentencepiece"] += token.startswith("▁")
        counts["wordpiece"] += token.startswith("##") and len(token) > 2
        counts["end"] += token.endswith("</w>")
    most = max(counts, key=lambda kind: counts[kind])
    return most if counts[most] else "none"


def as_text(token: str, marks: str) -> str:
    """One token as the text that it stands for, with its space before it; ``##ing`` stays, it is no word."""
    if marks in _OF_BYTES:
        return printable(_OF_BYTES[marks](token).decode("utf-8", "backslashreplace"))
    return printable(token.removesuffix("</w>") if marks == "end" else token)


def as_token(text: str, marks: str) -> str:
    """The token that stands for a text, if there is one."""
    if marks == "bytes":
        return "".join(_CHARACTER[byte] for byte in text.encode("utf-8", "surrogatepass"))
    return text.replace(" ", "▁") if marks == "sentencepiece" else f"{text}</w>" if marks == "end" else text


def _one(token: str, place: int, kind: str, apart: bool) -> Piece:
    if kind == "wordpiece" and token.startswith("##") and len(token) > 2:
        return Piece(_visible(token[2:]), (place, place + 1), False, False)
    text = token.removesuffix("</w>") if kind == "end" else token
    return Piece(_visible(text), (place, place + 1), apart)


def _behind_ends(found: list[Piece], tokens: Sequence[str]) -> list[Piece]:
    """A token begins a word where the one before it ended one."""
    return [
        piece if i == 0 or piece.special or found[i - 1].special or tokens[i - 1].endswith("</w>")
        else replace(piece, spaced=False, begins=False)
        for i, piece in enumerate(found)
    ]  # fmt: skip


def _attached(piece: Piece) -> Piece:
    """Punctuation, which is a word of its own here, stands close to the word before it."""
    return replace(piece, spaced=False) if _CLOSING.fullmatch(piece.text) else piece


# Bytes


def _alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: those that are printable stand for themselves, the others for U+0100 and on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in own]
    return {**{chr(byte): byte for byte in own}, **{chr(256 + n): byte for n, byte in enumerate(rest)}}


_ALPHABET = _alphabet()
_CHARACTER = {byte: character for character, byte in _ALPHABET.items()}


def _gpt2(token: str) -> bytes:
    if all(c in _ALPHABET for c in token):
        return bytes(_ALPHABET[c] for c in token)
    return token.encode("utf-8", "backslashreplace")  # Added tokens are not written in that alphabet.


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode("utf-8", "backslashreplace")


_OF_BYTES: dict[str, Callable[[str], bytes]] = {"bytes": _gpt2, "sentencepiece": _sentencepiece}


def _of_bytes(tokens: Sequence[str], special: Sequence[bool], read: Callable[[str], bytes]) -> list[Piece]:
    found: list[Piece] = []
    place, fresh = 0, True
    while place < len(tokens):
        if special[place]:
            found.append(Piece(printable(tokens[place]), (place, place + 1), bool(place), True, True))
            place, fresh = place + 1, True
            continue
        end, data = place + 1, read(tokens[place])
        while end < len(tokens) and not special[end] and _is_cut(data) and len(data) < 64:
            data, end = data + read(tokens[end]), end + 1
        text = data.decode("utf-8", "backslashreplace")
        begins = fresh or text[:1].isspace()
        broken = bool(found) and found[-1].text.endswith("\n")
        spaced = not broken and (text.startswith(" ") or (fresh and bool(found)))
        body = text[1:] if text.startswith(" ") else text
        found.append(Piece(_visible(body) if body or not text else "␣", (place, end), spaced, begins))
        place, fresh = end, text.endswith(("\n", "\r"))
        if fresh:
            found[-1] = replace(found[-1], begins=begins)
    return found


def _is_cut(data: bytes) -> bool:
    """Whether the last character needs further bytes."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            return back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
        if byte < 0x80:
            return False
    return False


def _visible(text: str) -> str:
    """With signs for line breaks and tabs, escapes for what cannot be seen, and spaces that are there."""
    if text and not text.strip(" "):
        return "␣" * len(text)
    return "".join(_SHOWN.get(c) or printable(c) for c in text)
