"""A product of two vectors of which entries are unknown: the gradient of the last layer, pruned, for one picture."""

import numpy as np


def factors(matrix: np.ndarray, row: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Vectors u and v with matrix = u v^T wherever the matrix is not 0; entries that are 0 are unknown.

    An entry ties its row to its column, and what is tied to nothing else that is known stays unknown. Magnitudes are
    the least squares of log |matrix| = log |u| + log |v|, in which all rows are solved for at once.

    Args:
      matrix: [rows, columns].
      row: whose u is 1; None begins with the column of most entries, whose v is 1.

    Returns:
      u [rows] and v [columns], NaN where they are unknown.
    """
    signs = np.sign(matrix)
    u, v = np.zeros(len(matrix)), np.zeros(matrix.shape[1])
    if row is None:
        v[np.argmax(np.count_nonzero(matrix, axis=0))] = 1
    else:
        u[row] = 1
    reached = -1
    while reached < (reached := np.count_nonzero(u) + np.count_nonzero(v)):  # signs of a product never disagree
        u = np.where(u == 0, np.sign(signs @ v), u)
        v = np.where(v == 0, np.sign(u @ signs), v)
    known = (matrix != 0) & (u != 0)[:, None] & (v != 0)
    logs = np.log(np.abs(matrix), out=np.zeros_like(matrix), where=known)
    entries = np.maximum(known.sum(1), 1)
    centered = np.where(known, logs - (logs.sum(1) / entries)[:, None], 0)
    normal = np.diag(known.sum(0)) - known.T @ (known / entries[:, None])
    log_v = np.linalg.lstsq(normal, centered.sum(0), rcond=None)[0]
    log_u = (logs - np.where(known, log_v, 0)).sum(1) / entries
    scale = log_u[row] if row is not None else -log_v[np.argmax(np.count_nonzero(matrix, axis=0))]
    return (
        np.where(u != 0, u * np.exp(log_u - scale), np.nan),
        np.where(v != 0, v * np.exp(log_v + scale), np.nan),
    )
