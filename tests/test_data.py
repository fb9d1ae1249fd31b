"""Loaders, against tiny copies in the real file layouts: pixels, order and every refusal."""

import dataclasses
import pickle
import shutil
import socket
import sys
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from gi_jax.checks import InputError
from gi_jax.data import cifar10
from gi_jax.data.cifar10_batches import BINARY_FILES, PYTHON_FILES
from gi_jax.data.dataset import rank_in_class
from gi_jax.data.datasets import DATASETS, Dataset, load
from gi_jax.data.pictures import resize
from gi_jax.data.synthetic import smooth_images
from gi_jax.data.victims import batches, choose, first_per_class

PER_BATCH = 12
RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (5 * PER_BATCH, 32, 32, 3), dtype=np.uint8)
TEST = RNG.integers(0, 256, (PER_BATCH, 32, 32, 3), dtype=np.uint8)
TRAIN_LABELS = RNG.permutation(np.arange(5 * PER_BATCH) % 10)
TEST_LABELS = np.arange(PER_BATCH) % 10


def refused(*parts: str):
    """Expects an InputError of one line that holds all of `parts` in this order."""
    return pytest.raises(InputError, match="^[^\n]*" + "[^\n]*".join(parts) + "[^\n]*$")


def per_file(names_of_splits):
    """Yields file name, planar pixels [n, 3072] and labels of each batch file."""
    for split, images, labels in (("train", TRAIN, TRAIN_LABELS), ("test", TEST, TEST_LABELS)):
        for i, name in enumerate(names_of_splits[split]):
            part = slice(i * PER_BATCH, (i + 1) * PER_BATCH)
            yield name, images[part].transpose(0, 3, 1, 2).reshape(PER_BATCH, -1), labels[part]


def write_python(folder):
    """Batches pickled as python 2 and an old numpy did: old module names, integer dtype flags."""
    folder.mkdir(parents=True)
    for name, pixels, labels in per_file(PYTHON_FILES):
        data = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)
        assert b"\x89\x88\x87" in data
        data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        (folder / name).write_bytes(data.replace(b"\x89\x88\x87", b"K\x00K\x01\x87", 1))
    return folder


def write_binary(folder):
    folder.mkdir(parents=True)
    for name, pixels, labels in per_file(BINARY_FILES):
        (folder / name).write_bytes(np.column_stack([labels.astype(np.uint8), pixels]).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(cifar10.CLASS_NAMES) + "\n\n")
    return folder


def write_class_folders(folder, suffix="png"):
    for split, images, labels in (("train", TRAIN, TRAIN_LABELS), ("test", TEST, TEST_LABELS)):
        for image, label, rank in zip(images, labels, rank_in_class(labels), strict=True):
            file = folder / split / cifar10.CLASS_NAMES[label] / f"{rank:04d}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return folder


def pack(archive, folder, arcname=None):
    """A tar archive whose members are in reverse order: readers must not rely on the order."""
    with tarfile.open(archive, "w:" + archive.suffix.strip(".").replace("tar", "").replace("tgz", "gz")) as tar:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                tar.add(file, f"{arcname}/{name}" if arcname else name)
    return archive


def write_picture(file, value=0, size=(32, 32), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value,) * 3).save(file)


def assert_original(dataset, split="train"):
    images, labels = (TRAIN, TRAIN_LABELS) if split == "train" else (TEST, TEST_LABELS)
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.labels.dtype == np.int32
    assert dataset.class_names == cifar10.CLASS_NAMES and dataset.note == ""


def assert_round_robin(dataset):
    order = np.lexsort((TRAIN_LABELS, rank_in_class(TRAIN_LABELS)))
    np.testing.assert_array_equal(dataset.images, TRAIN[order])
    np.testing.assert_array_equal(dataset.labels, TRAIN_LABELS[order])


# photos


def test_photos_hold_ten_balanced_classes_and_their_own_constants():
    photos = load("photos")
    assert photos.num_classes == 10 and len(photos) == 116 and len(load("photos", "test")) == 32
    assert photos.images.shape[1:] == (32, 32, 3) and photos.images.dtype == np.uint8
    np.testing.assert_array_equal(photos.labels[:20], np.tile(np.arange(10), 2))
    assert sorted(set(load("photos", "test").labels)) == list(range(10))
    pixels = photos.as_float()
    assert pixels.dtype == np.float32 and pixels.min() >= 0 and pixels.max() <= 1
    exact = photos.images / 255
    np.testing.assert_allclose(photos.mean, exact.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(photos.std, exact.std((0, 1, 2)), atol=1e-4)


def test_per_class_and_image_size():
    photos = load("photos", per_class=2, image_size=16)
    assert photos.images.shape == (20, 16, 16, 3)
    np.testing.assert_array_equal(photos.labels, np.tile(np.arange(10), 2))


# cifar10


@pytest.mark.parametrize("write", [write_python, write_binary])
def test_batches_keep_the_original_order(tmp_path, write):
    folder = write(tmp_path / "data" / "cifar-10-batches")
    for place in (folder, folder.parent):
        assert_original(load("cifar10", data_dir=place))
    assert_original(load("cifar10", "test", folder), "test")
    archive = pack(tmp_path / "cifar.tar.gz", folder, "cifar-10-batches")
    assert_original(load("cifar10", data_dir=archive))
    assert_original(load("cifar10", data_dir=str(tmp_path)))
    first = load("cifar10", data_dir=archive, per_class=2)
    np.testing.assert_array_equal(first.images, TRAIN[rank_in_class(TRAIN_LABELS) < 2])


@pytest.mark.parametrize("archive", ["a.tar", "a.tgz", "a.tar.xz"])
def test_class_folders_are_read_round_robin(tmp_path, archive):
    folder = write_class_folders(tmp_path / "data" / "cifar10")
    assert_round_robin(load("cifar10", data_dir=folder))
    assert_round_robin(load("cifar10", data_dir=folder.parent))
    (tmp_path / "packed").mkdir()
    path = pack(tmp_path / "packed" / archive, folder, "cifar10")
    assert_round_robin(load("cifar10", data_dir=path))
    assert_round_robin(load("cifar10", data_dir=path.parent))
    some = load("cifar10", data_dir=path, per_class=2)
    np.testing.assert_array_equal(some.images, load("cifar10", data_dir=folder).images[:20])


def test_class_folders_of_jpeg_are_called_lossy(tmp_path):
    assert "lossy" in load("cifar10", data_dir=write_class_folders(tmp_path, "jpg"), per_class=1).note


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A copy that tensorflow-datasets prepared from a tiny archive, without a network."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core.download import checksums

    from gi_jax.data.cifar10_tfds import Cifar10

    root = tmp_path_factory.mktemp("tfds")
    archive = pack(root / "cifar-10-binary.tar.gz", write_binary(root / "unpacked"), "cifar-10-batches-bin")
    url, checksum = next(iter(Cifar10.url_infos)), checksums.compute_url_info(archive).checksum
    info = checksums.UrlInfo(archive.stat().st_size, checksum, archive.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cifar10, "url_infos", {url: info})
        builder = Cifar10(data_dir=root / "data", file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=root))
    return root / "data"


def test_prepared_copy_is_put_back_in_the_original_order(prepared, monkeypatch):
    for place in (prepared, prepared / "cifar10", prepared / "cifar10" / "3.0.2"):
        assert_original(load("cifar10", data_dir=place))
    assert_original(load("cifar10", "test", prepared), "test")
    first = load("cifar10", data_dir=prepared, per_class=1)
    np.testing.assert_array_equal(first.images, TRAIN[rank_in_class(TRAIN_LABELS) < 1])
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert_original(load("cifar10"))


def test_damaged_prepared_copy_is_refused(prepared, tmp_path):
    copy = shutil.copytree(prepared / "cifar10" / "3.0.2", tmp_path / "copy")
    (copy / "features.json").write_text("{}")
    with refused("cannot be read as a prepared CIFAR-10", "--data photos"):
        load("cifar10", data_dir=copy)


def test_offline_machine_is_told_what_to_try(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", offline)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with refused("cannot be reached", "--data-dir", "--data photos"):
        load("cifar10")


def test_without_tensorflow_datasets_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "gi_jax.data.cifar10_tfds", raising=False)
    monkeypatch.delattr("gi_jax.data.cifar10_tfds", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with refused("cifar10 without --data-dir", "pip install tensorflow-datasets", "cifar-10-batches-py"):
        load("cifar10")
    assert_original(load("cifar10", data_dir=write_python(tmp_path / "python")))


def test_damaged_batches_are_refused(tmp_path):
    python, binary = write_python(tmp_path / "python"), write_binary(tmp_path / "binary")
    (python / "test_batch").write_bytes(pickle.dumps(print))
    with refused("test_batch cannot be read", "UnpicklingError"):
        load("cifar10", "test", python)
    (python / "test_batch").write_bytes((python / "data_batch_1").read_bytes()[:100])
    with refused("test_batch cannot be read", "download"):
        load("cifar10", "test", python)
    (binary / "test_batch.bin").write_bytes(b"\0" * 3072)
    with refused("test_batch.bin has 3072 bytes", "multiple of 3073"):
        load("cifar10", "test", binary)
    (binary / "test_batch.bin").write_bytes(b"\x0b" * 3073)
    with refused("test_batch.bin: expected 1 labels in 0 to 9"):
        load("cifar10", "test", binary)
    (binary / "data_batch_3.bin").unlink()
    with refused("data_batch_3.bin missing beside the other batches"):
        load("cifar10", "train", binary)


# folder


def test_folder_reads_any_format_in_round_robin_order(tmp_path):
    write_picture(tmp_path / "dog" / "b.bmp", 20)
    write_picture(tmp_path / "dog" / "a.png", 10)
    write_picture(tmp_path / "ant" / "z.gif", 30, mode="L")
    (tmp_path / "ant" / "readme.txt").write_text("no picture")
    data = load(f"folder:{tmp_path}")
    assert data.class_names == ("ant", "dog") and data.labels.tolist() == [0, 1, 1]
    assert data.images[:, 5, 5, 0].tolist() == [30, 10, 20]
    assert load(f"folder:{pack(tmp_path / 'a.tar', tmp_path / 'dog', 'dog')}").class_names == ("dog",)


def test_folder_cuts_the_center_square_and_resizes(tmp_path):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 200
    (tmp_path / "c").mkdir()
    Image.fromarray(wide).save(tmp_path / "c" / "wide.png")
    for size in (20, 40, 60):
        images = load(f"folder:{tmp_path}", image_size=size).images
        assert images.shape == (1, size, size, 3) and (images == 200).all()


def test_transparency_shows_white_and_not_what_it_hides(tmp_path):
    disc = np.zeros((8, 8, 4), np.uint8)  # black on transparent black
    disc[2:6, 2:6, 3] = 255
    rgba, gray = Image.fromarray(disc), Image.fromarray(disc[..., 2:])
    opaque = np.where(disc[..., 3], 0, 255)
    indexed = Image.fromarray((disc[..., 3] == 0).astype(np.uint8)).convert("P")  # color 1 is transparent
    indexed.putpalette([0, 0, 0] * 2)
    hidden = Image.new("RGB", (8, 8), (9, 9, 9))
    hidden.paste((0, 0, 0), (2, 2, 6, 6))
    (tmp_path / "c").mkdir()
    rgba.save(tmp_path / "c" / "rgba.png")
    gray.save(tmp_path / "c" / "la.png")
    rgba.save(tmp_path / "c" / "rgba.webp", lossless=True, exact=True)
    indexed.save(tmp_path / "c" / "palette.png", transparency=1)
    indexed.save(tmp_path / "c" / "palette.gif", transparency=1)
    hidden.save(tmp_path / "c" / "key.png", transparency=(9, 9, 9))
    for image in load(f"folder:{tmp_path}", image_size=8).images:
        np.testing.assert_array_equal(image, np.broadcast_to(opaque[..., None], image.shape))


def test_half_transparency_mixes_with_white(tmp_path):
    write_picture(tmp_path / "c" / "half.png", (0, 100, 200, 51), mode="RGBA")
    assert load(f"folder:{tmp_path}").images[0, 5, 5].tolist() == [204, 224, 244]


def test_an_opaque_picture_with_an_alpha_channel_keeps_its_pixels(tmp_path):
    (tmp_path / "c").mkdir()
    Image.fromarray(TRAIN[0]).convert("RGBA").save(tmp_path / "c" / "1.png")
    np.testing.assert_array_equal(load(f"folder:{tmp_path}").images, TRAIN[:1])


def test_folder_labels_agree_between_splits(tmp_path):
    write_picture(tmp_path / "train" / "a" / "1.png")
    write_picture(tmp_path / "train" / "b" / "1.png")
    write_picture(tmp_path / "test" / "b" / "1.png")
    assert load(f"folder:{tmp_path}", "test").labels.tolist() == [1]
    assert load(f"folder:{tmp_path}").labels.tolist() == [0, 1]


def test_damaged_pictures_are_refused(tmp_path):
    file = tmp_path / "a" / "1.png"
    write_picture(file)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no picture at all"):
        file.write_bytes(damaged)
        with refused("a/1.png cannot be read as a picture", "replace or remove"):
            load(f"folder:{tmp_path}")
    Image.fromarray(np.full((32, 32), 1000, np.uint16)).save(file)
    with refused("a/1.png has more than 8 bits a channel"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_damaged_archives_are_refused(tmp_path, suffix):
    archive = pack(tmp_path / f"a{suffix}", write_class_folders(tmp_path / "data"))
    whole = archive.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[: len(whole) // 1024 * 512], b"", b"no archive" * 100):
        archive.write_bytes(damaged)
        for name, data_dir in ((f"folder:{archive}", None), ("cifar10", archive)):
            with refused(f"a{suffix} is not a complete tar archive", "again"):
                load(name, data_dir=data_dir)


def test_archive_with_a_broken_member_header_is_refused(tmp_path):
    archive = pack(tmp_path / "a.tar", write_class_folders(tmp_path / "data"))
    with tarfile.open(archive) as tar:
        header = tar.getmembers()[5].offset
    data = bytearray(archive.read_bytes())
    data[header : header + 8] = b"garbage!"
    archive.write_bytes(data)
    with refused("a.tar is not a complete tar archive", "after 5 files"):
        load(f"folder:{archive}")


# refusals at the door


def test_unknown_names_and_splits_are_refused():
    assert list(DATASETS) == ["photos", "photos_large", "cifar10", "folder:PATH"]
    with refused("unknown data set 'cifar'", "did you mean 'cifar10'"):
        load("cifar")
    with refused("unknown split 'trian'", "did you mean 'train'"):
        load("photos", "trian")
    with refused("names no folder", "folder:PATH"):
        load("folder")
    with refused("per_class=0"):
        load("photos", per_class=0)
    with refused("image_size=-1"):
        load("photos", image_size=-1)
    with refused("data_dir=here", "photos takes none"):
        load("photos", data_dir="here")


def test_missing_and_empty_places_are_refused(tmp_path):
    for name, data_dir in (("cifar10", tmp_path / "nowhere"), (f"folder:{tmp_path / 'nowhere'}", None)):
        with refused("nowhere: no such file or directory"):
            load(name, data_dir=data_dir)
    for name, data_dir in (("cifar10", tmp_path), (f"folder:{tmp_path}", None)):
        with refused("is empty"):
            load(name, data_dir=data_dir)
    write_picture(tmp_path / "loose.png")
    with refused("holds no class folders with pictures, nor two pictures", "<class>"):
        load(f"folder:{tmp_path}")
    with refused("holds no train pictures of CIFAR-10", "data_batch_1", "airplane"):
        load("cifar10", data_dir=tmp_path)


def test_pictures_without_class_folders_are_a_class_each(tmp_path):
    colors = {"b.png": 200, "a.jpg": 50, "a.png": 120}
    for name, level in colors.items():
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(tmp_path / name, quality=100)
    (tmp_path / "notes.txt").write_text("no picture")
    found = load(f"folder:{tmp_path}", image_size=4, per_class=1)
    assert found.class_names == ("a.jpg", "a.png", "b.png") and found.labels.tolist() == [0, 1, 2]
    assert np.abs(found.images.astype(int)[:, 0, 0, 0] - [50, 120, 200]).max() <= 1
    assert "3 pictures" in found.note and "each a class of its own" in found.note
    with refused("split 'test' is missing", "all of split 'train'"):
        load(f"folder:{tmp_path}", "test")


@pytest.mark.parametrize("cats, dogs", [("cats", "dogs"), ("train/cats", "test/dogs")])
def test_pictures_that_lie_in_no_class_folder_are_left_out_and_counted(tmp_path, cats, dogs):
    write_picture(tmp_path / cats / "1.png")
    write_picture(tmp_path / dogs / "1.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = load(f"folder:{tmp_path}")
    assert found.left_out == "" and "left out" not in found.note
    write_picture(tmp_path / "loose.png")
    assert load(f"folder:{tmp_path}").note.endswith("; 1 picture beside or below the class folders is left out")
    write_picture(tmp_path / cats / "kittens" / "1.png")
    found = load(f"folder:{tmp_path}", per_class=1)
    assert found.class_names == ("cats", "dogs") and found.note.endswith(f"; {found.left_out}")
    assert found.left_out == "2 pictures beside or below the class folders are left out"


def test_missing_splits_are_refused(tmp_path, prepared):
    write_picture(tmp_path / "flat" / "a" / "1.png")
    write_picture(tmp_path / "split" / "train" / "a" / "1.png")
    for name in ("flat", "split"):
        with refused("split 'test' is missing", "choose split 'train'"):
            load(f"folder:{tmp_path / name}", "test")
    shutil.rmtree(write_class_folders(tmp_path / "cifar") / "test")
    with refused("holds no test pictures of CIFAR-10"):
        load("cifar10", "test", tmp_path / "cifar")
    copy = shutil.copytree(prepared / "cifar10" / "3.0.2", tmp_path / "prepared")
    info = (copy / "dataset_info.json").read_text()
    (copy / "dataset_info.json").write_text(info.replace('"name": "test"', '"name": "other"'))
    with refused("split 'test' is missing", "choose from train, other"):
        load("cifar10", "test", copy)


# victims


@pytest.fixture
def numbered():
    """Nine pictures of three classes in a scan order of no pattern; each pixel tells its index."""
    images = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None], (9, 2, 2, 3))
    labels = np.array([2, 2, 0, 1, 0, 2, 1, 1, 0], np.int32)
    return Dataset("numbered", images, labels, ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(
    "field, change, message",
    [
        ("images", lambda x: x / np.float32(255), "images of type float32; expected uint8"),
        ("images", lambda x: np.moveaxis(x, 3, 1), r"images of shape \(9, 3, 2, 2\) .* try images.transpose"),
        ("images", lambda x: x[..., 0], r"images of shape \(9, 2, 2\) with 3 means and 3 deviations"),
        ("std", lambda x: x[:1], "with 3 means and 1 deviations"),
        ("labels", lambda x: x[1:], r"labels of type int32 and shape \(8,\) for 9 pictures"),
        ("labels", lambda x: x / 2, "labels of type float64"),
        ("labels", lambda x: x + 1, "label 3; expected 0 to 2"),
        ("labels", lambda x: x - 1, "label -1; expected 0 to 2"),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(numbered, field, change, message):
    with pytest.raises(InputError, match=f"^numbered: .*{message}"):
        dataclasses.replace(numbered, **{field: change(getattr(numbered, field))})
    assert dataclasses.replace(numbered, labels=numbered.labels.tolist()).labels.dtype.kind == "i"


def indices(dataset):
    return dataset.images[:, 0, 0, 0].tolist()


def test_first_per_class_keeps_the_scan_order(numbered):
    assert indices(first_per_class(numbered, 1)) == [0, 2, 3]
    assert indices(first_per_class(numbered, 2)) == [0, 1, 2, 3, 4, 6]
    with refused("first=4", "3 pictures of class 'a'", "--first"):
        first_per_class(numbered, 4)
    more = dataclasses.replace(numbered, class_names=(*numbered.class_names, "none"))
    with refused("first=1", "no picture of class 'none'; expected some of each class"):
        first_per_class(more, 1)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda data: first_per_class(data, 1.5), "first"),
        (lambda data: choose(data, 1.5, 0), "count"),
        (lambda data: batches(data, 1.5, 1), "batch_size"),
        (lambda data: batches(data, 1, 1.5), "num_batches"),
        (lambda data: load("photos", image_size=1.5), "image_size"),
        (lambda data: load("photos", per_class=1.5), "per_class"),
        (lambda data: smooth_images(jax.random.key(0), 1, 1.5, 8), "height"),
    ],
)
def test_counts_and_sizes_are_whole(numbered, call, name):
    with refused(f"{name}=1.5: expected a whole number above 0"):
        call(numbered)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_of_any_number_of_channels_are_resized(channels):
    images = RNG.integers(0, 256, (2, 12, 10, channels), dtype=np.uint8)
    found = resize(images, 6)
    assert found.shape == (2, 6, 6, channels) and found.dtype == np.uint8
    for image, small in zip(images, found, strict=True):
        for channel in range(channels):
            square = Image.fromarray(image[1:11, :, channel])
            np.testing.assert_array_equal(small[..., channel], square.resize((6, 6), Image.Resampling.BICUBIC))
        if channels == 3:
            square = Image.fromarray(image[1:11])
            np.testing.assert_array_equal(small, square.resize((6, 6), Image.Resampling.BICUBIC))


def test_choose_is_seeded_and_draws_nothing_twice(numbered):
    drawn = indices(choose(numbered, 6, seed=3))
    assert len(set(drawn)) == 6 and drawn == indices(choose(numbered, 6, seed=3))
    assert drawn != indices(choose(numbered, 6, seed=4))
    with refused("count=10", "9 pictures"):
        choose(numbered, 10, seed=0)
    with refused("seed=-1"):
        choose(numbered, 1, seed=-1)


def test_batches_are_consecutive_and_whole(numbered):
    assert [indices(batch) for batch in batches(numbered, 4, 2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with refused("needs 12 pictures, there are 9", "--first", "--batch-size"):
        batches(numbered, 4, 3)


# synthetic


def test_smooth_images_are_seeded_smooth_and_jittable():
    draw = jax.jit(smooth_images, static_argnums=(1, 2, 3, 4))
    images = np.asarray(draw(jax.random.key(0), 3, 24, 16, 3))
    assert images.shape == (3, 24, 16, 3) and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.1
    assert np.abs(np.diff(images, axis=1)).mean() < 0.2 * images.std()
    np.testing.assert_allclose(images, smooth_images(jax.random.key(0), 3, 24, 16), atol=1e-6)
    assert not np.allclose(images, draw(jax.random.key(1), 3, 24, 16, 3))
    with refused("height=0"):
        smooth_images(jax.random.key(0), 1, 0, 8)
