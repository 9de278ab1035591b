import tarfile

import pytest

from pfungst.errors import DataError, InputError
from pfungst.pool import index, open_pool
from pfungst.pool.read import read
from pool_sample import encoded, folder_pool, parquet_pool, tar_pool


@pytest.mark.parametrize("make", [folder_pool, tar_pool, parquet_pool])
def test_every_image_is_found_again(tmp_path, make):
    pool = index(make(tmp_path / "source", 40), tmp_path / "pool", shard_rows=9)
    assert (pool.rows, pool.shards) == (40, 5)
    assert open_pool(tmp_path / "pool") == pool
    places = [p for shard in range(pool.shards) for p in pool.shard(shard)]
    assert len({p.id for p in places}) == 40
    found = [c for shard in range(pool.shards) for c in read(pool, pool.shard(shard))]
    assert sorted(found) == sorted(encoded(i) for i in range(40))
    # A few places picked from the middle.
    some = places[3::7]
    assert list(read(pool, some)) == found[3::7]


def test_ids_from_a_column(tmp_path):
    pool = index(parquet_pool(tmp_path / "source", 10), tmp_path / "pool", id_column="name")
    assert [p.id for p in pool.shard(0)] == [f"image-{i}" for i in range(10)]


def test_duplicate_ids_are_named_with_their_files(tmp_path):
    source = parquet_pool(tmp_path / "source", 10, ids=["a"] * 2 + list("bcdef") + ["a", "b", "g"])
    with pytest.raises(
        DataError,
        match=r"2 ids occur more than once:\n    'a': 3 times, in data-0.parquet and data-1.parquet",
    ):
        index(source, tmp_path / "pool", id_column="name")
    with pytest.raises(DataError, match=r"index\.json cannot be read"):
        open_pool(tmp_path / "pool")


def test_unreadable_shards_are_named_or_left_out(tmp_path):
    for make, name in ((parquet_pool, "data-1.parquet"), (tar_pool, "shard-1.tar")):
        source = make(tmp_path / name, 12)
        (source / name).write_bytes(b"broken" * 200)
        with pytest.raises(DataError, match=f"1 source files cannot be read:\n    {name}"):
            index(source, tmp_path / "pool")
        pool = index(source, tmp_path / "pool", skip_bad=True)
        assert list(pool.unreadable) == [name]
        assert 0 < pool.rows < 12


def test_what_cannot_be_indexed(tmp_path):
    with pytest.raises(DataError, match="there is no"):
        index(tmp_path / "absent", tmp_path / "pool")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        index(tmp_path / "empty", tmp_path / "pool")
    with pytest.raises(InputError, match="shard_rows"):
        index(tmp_path, tmp_path / "pool", shard_rows=0)
    with tarfile.open(tmp_path / "x.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match="cannot be read"):
        index(tmp_path / "x.tar", tmp_path / "pool")
    with pytest.raises(DataError, match="no column 'photo'"):
        index(parquet_pool(tmp_path / "source", 3), tmp_path / "pool", column="photo")


def test_files_that_vanish_or_shrink_give_a_reason(tmp_path):
    pool = index(folder_pool(tmp_path / "source", 6), tmp_path / "pool")
    places = pool.shard(0)
    (pool.source / places[1].file).unlink()
    (pool.source / places[2].file).write_bytes(b"short")
    found = list(read(pool, places))
    assert [isinstance(c, str) for c in found] == [False, True, True, False, False, False]
    assert "No such file" in found[1]
    assert "shorter" in found[2]


def test_a_tar_that_ends_between_two_members_is_noticed(tmp_path):
    source = tar_pool(tmp_path / "source", 6, shards=1)
    file = source / "shard-0.tar"
    with tarfile.open(file) as tar:
        members = tar.getmembers()
    whole = file.read_bytes()
    for keep in (members[4].offset, members[1].offset, members[2].offset + 100, members[2].offset_data + 10):
        file.write_bytes(whole[:keep])
        with pytest.raises(DataError, match=r"cut off|unexpected end|truncated"):
            index(source, tmp_path / "pool")
    file.write_bytes(whole[: members[2].offset] + b"x" * 512 + whole[members[2].offset + 512 :])
    with pytest.raises(DataError, match="damaged"):
        index(source, tmp_path / "pool")
    file.write_bytes(whole)
    assert index(source, tmp_path / "pool").rows == 6


def test_dicom_and_heic_are_named_and_not_left_out_silently(tmp_path):
    """Regression: a pool of DICOM files held no images, and one with some lacked them without a word."""
    source = folder_pool(tmp_path / "source", 4)
    (source / "scan.DCM").write_bytes(b"x")
    (source / "phone.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"2 source files cannot be read(.|\n)*scan\.DCM: DICOM"):
        index(source, tmp_path / "pool")
    pool = index(source, tmp_path / "pool", skip_bad=True)
    assert (pool.rows, sorted(pool.unreadable)) == (4, ["phone.heic", "scan.DCM"])
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        tar.add(source / "scan.DCM", "a/scan.dcm")
        tar.add(source / "0" / "0000.png", "a/0.png")
    assert list(index(tmp_path / "one.tar", tmp_path / "p", skip_bad=True).unreadable) == [
        "one.tar/a/scan.dcm"
    ]
