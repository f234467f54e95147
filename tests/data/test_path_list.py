"""Paths and labels in arrays behave as tuples of the same, and take little memory."""

import numpy as np
import pytest

from fcmae.data.path_list import CHUNK, Labels, PathList

PATHS = ("/d/a/1.png", "/d/\udce9\u00e9.png", "", "b\n.png", "/d/a/1.png")


def test_a_path_list_is_a_sequence_equal_to_the_tuple() -> None:
    paths = PathList(PATHS)
    assert paths == PATHS
    assert list(paths) == list(PATHS)
    assert (paths[0], paths[-1], paths[1:3]) == (PATHS[0], PATHS[-1], PATHS[1:3])
    assert paths != PATHS[:-1]
    assert paths != (*PATHS[:-1], "other")
    assert PATHS[1] in paths
    with pytest.raises(IndexError):
        paths[5]


def test_selected_paths_come_in_the_order_asked_for() -> None:
    paths = PathList(PATHS)
    assert paths.select([3, 0, 0]) == ("b\n.png", "/d/a/1.png", "/d/a/1.png")
    assert paths.select([]) == ()
    assert paths.select(np.array([], np.int64)) == PathList()
    assert paths + ("x",) == (*PATHS, "x")  # noqa: RUF005  # the operator is what is tested


def test_more_paths_than_one_chunk_keep_their_places() -> None:
    names = [f"folder-{number % 7}/{number}.png" for number in range(2 * CHUNK + 5)]
    paths = PathList(names)
    assert list(paths) == names
    order = np.random.default_rng(0).permutation(len(names))
    assert list(paths.select(order)) == [names[place] for place in order]


def test_a_million_paths_take_their_bytes_and_eight_more() -> None:
    paths = PathList(f"/images/of/someone/{number:07d}.jpeg" for number in range(100_000))
    assert paths.num_bytes < 100_000 * (len("/images/of/someone/0000000.jpeg") + 8.1)


def test_labels_are_a_sequence_equal_to_the_tuple() -> None:
    labels = Labels((0, 2, -1))
    assert labels == (0, 2, -1)
    assert labels != (0, 2)
    assert (labels[1], type(labels[1]), labels[1:], list(labels)) == (2, int, (2, -1), [0, 2, -1])
