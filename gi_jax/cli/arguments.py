"""Arguments that several commands take."""

from gi_jax.errors import InputError


def numbers(kind):
    """The type of an argument that is a list, separated by commas."""

    def numbers(text):
        return tuple(kind(part) for part in text.split(","))

    numbers.__name__ = "list of numbers"  # for the parser's error
    return numbers


def data_arguments(add, default: str | None = "photos") -> None:
    """Where pictures come from; `add` is `add_argument` of a parser or of a group in it."""
    said = f"default: {default or 'none'}"
    add(
        "--data",
        default=default,
        metavar="D",
        help=f"photos (embedded), cifar10, or folder:PATH with a folder a class, or with pictures only ({said})",
    )
    add("--data-dir", metavar="P", help="a copy of cifar10: folder or tar archive, in any of its usual forms")
    add("--image-size", type=int, metavar="S", help="resize to S x S (default: the data set's own; folders 32)")


def victim_arguments(parser) -> None:
    """What is attacked: the private data, and the client that holds it."""
    add = parser.add_argument_group("private data").add_argument
    data_arguments(add)
    add("--split", default="train", metavar="train|test", help="default: train")
    add("--first", type=int, default=1, metavar="N", help="victims are the first N of each class (default: 1)")
    add("--victim-seed", type=int, metavar="K", help="draw the victims at random instead")
    add("--batch-size", type=int, default=1, metavar="B", help="pictures in a private batch (default: 1)")
    add(
        "--num-batches",
        type=int,
        metavar="N",
        help="observed updates (default: as many as there are, at most 6)",
    )

    add = parser.add_argument_group("client").add_argument
    add("--model", metavar="M", help="see gi-jax list models (default: convnet, or that of --weights)")
    add("--model-seed", type=int, default=0, metavar="K", help="seed of the network's weights (default: 0)")
    add(
        "--weights",
        metavar="W",
        help="of gi-jax train or convert, folder or file; without: a network at its initialization",
    )
    add(
        "--client-bn",
        default="running",
        metavar="batch|running",
        help="statistics that the client's BatchNorm uses (default: running; the paper: batch)",
    )
    add(
        "--defense",
        action="append",
        metavar="NAME:P=V",
        help="the client's defense, such as prune:p=0.9; repeated: one after the other; see gi-jax list defenses",
    )
    add(
        "--compare",
        action="append",
        metavar="DEFENSE",
        help="a run for each: none, a defense, or several joined by +; repeat it (default: none; gi-jax attack "
        "without any option: the quickstart's four)",
    )
    add(
        "--encodings",
        type=int,
        default=1,
        metavar="T",
        help="epochs in which a defense that encodes pictures encodes all of them, for gi-jax decode (default: 1)",
    )
    add(
        "--local-steps",
        type=int,
        default=1,
        metavar="N",
        help="steps of SGD that the client takes before it sends its model, in whole epochs (default: 1, and it sends "
        "the gradient)",
    )
    add("--local-batch-size", type=int, metavar="B", help="pictures in a local step (default: all of the batch)")
    add(
        "--local-lr",
        dest="local_rate",
        type=float,
        default=0.01,
        metavar="L",
        help="learning rate of the local steps (default: 0.01, where tutorials of SGD start)",
    )


def network_settings(options) -> dict[str, str]:
    """The fields of an `AttackSpec` that say which network is attacked.

    Raises:
      InputError: for weights that cannot be used, or are of another model than --model.
    """
    if options.weights is None:
        return {"model": options.model or "convnet"}
    from gi_jax.experiments.weights import settings_of

    found = settings_of(options.weights)
    if options.model not in (None, found["model"]):
        raise InputError(
            f"--model {options.model} with --weights {options.weights}, which are of {found['model']}: leave --model "
            "out, or name other weights"
        )
    return found
