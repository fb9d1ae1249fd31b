"""Which client holds which pictures: every client the same number of them, so that clients are lanes of one program."""

import numpy as np

from gi_jax import checks


def iid(labels: np.ndarray, num_clients: int, seed: int) -> np.ndarray:
    """Pictures dealt out at random.

    Args:
      labels: int [m], of all pictures.
      num_clients: 1 or more.
      seed: of the draw.

    Returns:
      int32 [num_clients, m // num_clients], which pictures each client holds; none is held twice, and the remainder of
      the division is held by nobody.

    Raises:
      InputError: for more clients than pictures.
    """
    size = _size(labels, num_clients, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[: num_clients * size].reshape(num_clients, size).astype(np.int32)


def dirichlet(labels: np.ndarray, num_clients: int, alpha: float, seed: int) -> np.ndarray:
    """Clients of different classes: the shares of a client are drawn from Dir(alpha p) (Hsu et al. 2019, section 3.1).

    p are the shares of the classes in all pictures and sum to 1. With alpha to infinity every client has the shares p;
    with alpha to 0 it has one class. Where others write Dir(a, ..., a), with a number for each class, this alpha is the
    sum: a times the number of classes.

    The clients take one picture each in turn, so that none of them is left with what the others did not want. When a
    class runs out, the other shares of a client count as before; when all of them ran out, they are drawn anew among
    the classes that are left.

    Args:
      labels: int [m], of all pictures.
      num_clients: 1 or more.
      alpha: concentration, above 0.
      seed: of the draw.

    Returns:
      As `iid`.

    Raises:
      InputError: for more clients than pictures, and alpha that is not above 0.
    """
    size = _size(labels, num_clients, seed)
    checks.positive(alpha=alpha)
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    classes = np.unique(labels)
    waiting = [rng.permutation(np.flatnonzero(labels == number)).tolist() for number in classes]
    left = np.array([len(pictures) for pictures in waiting])
    popularity = left / left.sum()
    shares = np.stack([_shares(rng, alpha, popularity) for _ in range(num_clients)])
    held = np.empty((num_clients, size), np.int32)
    for turn in range(size):
        for client in range(num_clients):
            weights = shares[client] * (left > 0)
            if not weights.sum() > 0:
                weights = shares[client] = _shares(rng, alpha, popularity * (left > 0))
            cumulative = np.cumsum(weights)
            taken = np.searchsorted(cumulative / cumulative[-1], rng.random(), side="right")
            held[client, turn] = waiting[taken].pop()
            left[taken] -= 1
    return held


def _shares(rng, alpha, popularity):
    """A draw from Dir(alpha p), for p that sums to 1 over some classes and is 0 for others."""
    present = np.flatnonzero(popularity)
    shares = np.zeros(len(popularity))
    concentrations = alpha * popularity[present] / popularity.sum()
    # Below, gamma variables underflow; a draw is then one class but for numbers that no picture would follow.
    if concentrations.max() < 1e-3:
        shares[rng.choice(present, p=popularity[present] / popularity.sum())] = 1.0
    else:
        shares[present] = rng.dirichlet(concentrations)
    return shares


def _size(labels, num_clients, seed):
    checks.positive(num_clients=num_clients)
    checks.seed("seed", seed)
    if num_clients > len(labels):
        raise checks.InputError(
            f"{num_clients} clients with {len(labels)} pictures: expected a picture for each; take fewer clients"
        )
    return len(labels) // num_clients
