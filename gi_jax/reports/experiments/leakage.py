"""How much leaked, read from a row of an attack: by the paper's scoring, by this library's, and after decoding."""

from gi_jax.reports.experiments.found import Found

LPIPS = "lpips_vgg"
SCALE = (
    "LPIPS (VGG) is the perceptual distance of a picture from the original: 0 is identical, and a higher value means "
    "that less leaked. The best value is that of the picture that leaked most."
)


def decoded(row: dict, decoder: str, encodings: str) -> dict | None:
    """The block of a decoder (`paper`, or anything else for the better one) on `recovered` or `true` encodings."""
    for block in row["result"].get("decoded", ()):
        if (block["decoder"] == "paper") == (decoder == "paper") and block["encodings"] == encodings:
            return block
    return None


def own(found: Found | None, metric: str = LPIPS) -> dict | None:
    """Summary of a metric by this library's scoring: mean, best, std, count and failed; None if it is missing."""
    return None if found is None else found.row["result"]["summary"].get(metric)


def reference(found: Found | None, metric: str = LPIPS) -> dict | None:
    """Summary by the scoring of the paper's code."""
    return None if found is None else found.row["result"].get("reference_summary", {}).get(metric)


def protocol_block(found: Found | None) -> dict | None:
    """The block whose pictures count under the published protocol: the attack's, or that of the paper's decoder."""
    if found is None:
        return None
    return decoded(found.row, "paper", "recovered") if "decoded" in found.row["result"] else found.row["result"]


def published_protocol(found: Found | None) -> dict | None:
    """Summary of LPIPS that compares with the paper's tables.

    That is the paper's scoring of what was attacked; where pictures were encoded, of what the paper's decoder made of
    the recovered encodings, against the original of the same index.
    """
    block = protocol_block(found)
    return None if block is None else block.get("reference_summary", {}).get(LPIPS)


def per_picture(block: dict | None) -> list[float]:
    """LPIPS of each picture of a block, those that failed left out."""
    rows = [] if block is None else block["images"]
    return [row[LPIPS] for row in rows if row.get(LPIPS) is not None]


def number(summary: dict | None, field: str) -> float | None:
    """A field of a summary; None where anything is missing."""
    return None if summary is None else summary[field]


def shown(summary: dict | None, field: str) -> float | str | None:
    """The same for a table, where a run all of whose pictures failed is no missing run."""
    return "diverged" if summary is not None and summary[field] is None else number(summary, field)


def difference(value: float | None, other: float | None) -> float | None:
    """value - other; None where one is missing."""
    return None if value is None or other is None else value - other


def tile_captions(found: Found, count: int) -> list[str]:
    """LPIPS of the pictures that `found.pictures` shows, for the first `count`; empty where there is none."""
    block = protocol_block(found)
    rows = [] if block is None else block["images"][:count]
    texts = ["" if row.get(LPIPS) is None else f"{row[LPIPS]:.2f}" for row in rows]
    return texts + [""] * (count - len(texts))
