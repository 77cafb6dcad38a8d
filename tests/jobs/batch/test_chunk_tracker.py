from __future__ import annotations

import errno

import pytest

from captionlib.storage.errors import TransportFault
from captionlib.storage.folder import Folder
from jobs.batch.chunk_tracker import ChunkTracker
from jobs.batch.decode_stage import Chunk
from jobs.cli.errors import JobIncomplete
from jobs.cli.progress import Progress
from jobs.outputs.chunk_files import ChunkFiles, FileCounts
from jobs.outputs.id_ranges import IdRange


class AllThere(ChunkFiles):
    def exists(self, ids):
        return True


def tracker(tmp_path, *, max_error_share=0.5, patience=3, files=AllThere):
    progress = Progress(10_000, 0, "captioned")
    return ChunkTracker(files(Folder.of(str(tmp_path)), "captions"), progress, max_error_share, patience)


def receipt(first, last, status="committed", failed=0, reason=None, node="n", deferred=0, answered=None, pause=None):
    done = last - first + 1 - failed - deferred if status == "committed" else 0
    seconds = {f"{step}_seconds": 0.5 for step in ("read", "decode", "model", "write")}
    return {"first": first, "last": last, "status": status, "done": done, "failed": failed, "reason": reason,
            "node": node, "deferred": deferred, "answered": answered, "pause": pause, **seconds}  # fmt: skip


def chunks(*ranges):
    return [Chunk(IdRange(*r)) for r in ranges]


def test_all_committed(tmp_path):
    book = tracker(tmp_path)
    ended = book.consume(chunks((0, 9), (10, 19)), iter([receipt(10, 19, failed=2), receipt(0, 9)]))
    assert (ended.left, ended.poison, ended.made_progress) == ([], [], True)
    assert (book.progress.done, book.progress.failed) == (18, 2)
    assert book.seconds["model"] == 1.0


def test_a_part_put_off_comes_again_in_pieces(tmp_path):
    book = tracker(tmp_path)
    ended = book.consume(chunks((0, 15), (16, 19)), iter([receipt(0, 15, "deferred", reason="503"), receipt(16, 19)]))
    assert ended.left == chunks(*((i, i + 1) for i in range(0, 16, 2)))
    assert book.last_reason == "503"
    assert ended.made_progress


def test_a_part_of_which_some_images_did_not_come_comes_again_with_these(tmp_path):
    book = tracker(tmp_path)
    taken = [receipt(0, 15, failed=2, deferred=3, reason="503", answered="http://a/1.jpg")]
    ended = book.consume(chunks((0, 15)), iter(taken))
    assert ended.left == [Chunk(IdRange(0, 15), "deferred")]
    assert ended.made_progress
    assert (book.progress.done, book.progress.failed, book.last_reason) == (11, 2, "503")
    assert book.canaries == ["http://a/1.jpg"]
    book.note_answer("http://b/1.jpg")
    book.note_answer("http://a/2.jpg")
    assert book.canaries == ["http://a/2.jpg", "http://b/1.jpg"]


class Rows(AllThere):
    """Files whose rows are what a test says."""

    def count(self, ranges):
        return {ids: FileCounts(10, 0, 0) for ids in ranges}


def second(first, last):
    return Chunk(IdRange(first, last), "deferred", pause=10.0)


def test_a_second_attempt_in_the_same_round_settles_what_the_first_left(tmp_path):
    book = tracker(tmp_path, files=Rows)
    first = receipt(0, 9, deferred=3, reason="refused")
    again = receipt(0, 9, pause=10.0) | {"done": 2, "failed": 1}
    needless = [receipt(10, 19), receipt(10, 19, "nothing", pause=10.0)]
    ended = book.consume([*chunks((0, 9), (10, 19)), second(0, 9), second(10, 19)], iter([first, *needless, again]))
    assert (ended.left, ended.made_progress) == ([], True)
    assert (book.progress.done, book.progress.failed) == (19, 1)
    assert book.rows == (20, 0, 0)


def test_a_second_attempt_may_be_heard_of_before_the_first(tmp_path):
    book = tracker(tmp_path, files=Rows)
    again = receipt(0, 9, pause=10.0) | {"done": 3}
    ended = book.consume([*chunks((0, 9)), second(0, 9)], iter([again, receipt(0, 9, deferred=3, reason="refused")]))
    assert ended.left == []
    assert book.rows == (10, 0, 0)
    assert book.progress.done == 10


@pytest.mark.parametrize(
    ("receipts", "left"),
    [
        ([receipt(0, 9, deferred=3), receipt(0, 9, "nothing", pause=10.0)], [(0, 9, "deferred")]),  # it came too early
        ([receipt(0, 9, deferred=3)], [(0, 9, "deferred")]),  # its process died
        ([receipt(0, 9, deferred=3), receipt(0, 9, "deferred", pause=10.0)], [(0, 9, "deferred")]),  # nothing answers
        ([receipt(0, 9, "nothing", pause=10.0)], [(i, min(i + 1, 9), "") for i in range(0, 10, 2)]),  # the first died
        ([], [(i, min(i + 1, 9), "") for i in range(0, 10, 2)]),
    ],
)
def test_what_a_second_attempt_does_not_settle_is_left(tmp_path, receipts, left):
    ended = tracker(tmp_path, files=Rows).consume([*chunks((0, 9)), second(0, 9)], iter(receipts))
    assert ended.left == [Chunk(IdRange(first, last), redo) for first, last, redo in left]
    assert ended.poison == ended.suspected == []


def test_a_part_to_do_again_keeps_its_size(tmp_path):
    chunk = Chunk(IdRange(0, 15), "errors")
    assert tracker(tmp_path).consume([chunk], iter([receipt(0, 15, "deferred")])).left == [chunk]


def test_parts_without_a_receipt_come_again_until_a_single_image_is_left(tmp_path):
    book = tracker(tmp_path)
    ended = book.consume(chunks((0, 3), (4, 4), (5, 9)), iter([receipt(5, 9)]))
    assert ended.left == chunks((0, 0), (1, 1), (2, 2), (3, 3))
    assert book.last_reason == "the processes that worked on them died"


def test_an_image_is_deadly_only_if_its_worker_dies_with_nothing_beside_it(tmp_path):
    book = tracker(tmp_path)
    ended = book.consume(chunks((3, 3), (4, 4), (5, 5)), iter([receipt(5, 5)]))
    assert (ended.left, ended.suspected, ended.poison) == ([], chunks((3, 3), (4, 4)), [])
    innocent = book.consume(chunks((3, 3)), iter([receipt(3, 3)]))
    assert (innocent.left, innocent.suspected, innocent.poison) == ([], [], [])
    guilty = book.consume(chunks((4, 4)), iter([]))
    assert (guilty.left, guilty.suspected, guilty.poison) == ([], [], chunks((4, 4)))


def test_a_round_is_given_up_when_parts_are_put_off_one_after_the_other(tmp_path):
    deferred = [receipt(i, i, "deferred", reason="no route") for i in range(10)]
    taken = iter([receipt(10, 19), *deferred])
    ended = tracker(tmp_path, patience=3).consume(chunks((10, 19), *((i, i) for i in range(10))), taken)
    assert next(taken)["first"] == 3  # it did not wait for the others
    assert sorted(ended.left) == chunks(*((i, i) for i in range(10)))
    assert ended.suspected == ended.poison == []


def test_refused_credentials_stop_at_once(tmp_path):
    with pytest.raises(JobIncomplete, match="ExpiredToken"):
        tracker(tmp_path).consume(chunks((0, 9)), iter([receipt(0, 9, "denied", reason="ExpiredToken")]))


def test_too_many_errors_stop_after_the_first_thousand(tmp_path):
    book = tracker(tmp_path, max_error_share=0.1)
    many = chunks((0, 499), (500, 998), (999, 999))
    with pytest.raises(JobIncomplete, match=r"101 of 1,000 images failed, more than --max-error-share 0\.1"):
        book.consume(many, iter([receipt(0, 499, failed=100), receipt(500, 998), receipt(999, 999, failed=1)]))


def test_as_many_errors_as_allowed_do_not_stop(tmp_path):
    ended = tracker(tmp_path, max_error_share=0.1).consume(chunks((0, 999)), iter([receipt(0, 999, failed=100)]))
    assert ended.left == []


def test_an_output_that_only_another_machine_sees(tmp_path):
    book = tracker(tmp_path, files=ChunkFiles)
    with pytest.raises(JobIncomplete, match="does not see what n wrote to .*a folder that all machines share"):
        book.consume(chunks((0, 9)), iter([receipt(0, 9)]))


def test_a_storage_that_is_away_when_the_output_is_looked_at_is_asked_again(tmp_path):
    asked = []

    class Away(ChunkFiles):
        def exists(self, ids):
            asked.append(ids)
            if len(asked) == 1:
                raise TransportFault(errno.EIO, "connection refused")
            return True

    book = tracker(tmp_path, files=Away)
    ended = book.consume(chunks((0, 9), (10, 19), (20, 29)), iter([receipt(0, 9), receipt(10, 19), receipt(20, 29)]))
    assert (ended.left, book.progress.images) == ([], 30)
    assert asked == [IdRange(0, 9), IdRange(10, 19)]


def test_a_part_that_was_done_twice_counts_once(tmp_path):
    book = tracker(tmp_path)
    book.consume(chunks((0, 9)), iter([receipt(0, 9), receipt(0, 9)]))
    assert book.progress.images == 10
