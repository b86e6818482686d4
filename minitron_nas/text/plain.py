"""Text as tokenizers take it."""

_BYTE_ORDER_MARK = "\ufeff"


def plain(text: str) -> str:
    """Return a text without a byte order mark at its beginning, and with U+FFFD for every half of a character.

    Halves of characters (lone surrogates) come from JSON that was cut inside an escape; two that belong together become
    the character that they mean.

    Args:
        text: Any.
    """
    text = text.removeprefix(_BYTE_ORDER_MARK)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
