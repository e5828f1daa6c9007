"""Who gets which shard: simulated workers that fail, die and straggle, with a clock of their own."""

from collections import Counter

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cluster.board import MOST_ATTEMPTS, Board

FATES = st.sampled_from(["done", "done", "done", "error", "death", "lost", "never"])


@settings(max_examples=60, phases=(Phase.explicit, Phase.generate))
@given(st.integers(1, 12), st.integers(1, 5), st.data())
def test_every_shard_is_done_once_or_given_up_after_three_attempts(n_shards: int, n_workers: int, data: st.DataObject) -> None:
    """Workers do what chance says; one that never answers is left behind when a second has done its shard, or hangs."""
    board = Board(range(n_shards))
    cursed = data.draw(st.sets(st.integers(0, n_shards - 1), max_size=3))
    holding: dict[str, int] = {}
    done: Counter[int] = Counter()
    failures: Counter[int] = Counter()
    silent: set[str] = set()
    now, n_hired = 0.0, n_workers
    free = [f"w{index}" for index in range(n_workers)]
    for _ in range(400):
        if board.over:
            break
        now += 600.0
        for worker in board.hung(now):
            failures[holding[worker]] += 1
            board.failed(holding.pop(worker), worker, "hangs", "death")
            silent.discard(worker)
        for worker in list(free):
            shard = board.give(worker, now)
            shard = board.give_again(worker, now) if shard is None else shard
            if shard is not None:
                assert shard not in done
                free.remove(worker)
                holding[worker] = shard
        for worker, shard in list(holding.items()):
            fate = data.draw(st.sampled_from(["error", "death"]) if shard in cursed else FATES)
            if fate == "never":
                silent.add(worker)
            if worker in silent:
                continue
            del holding[worker]
            if fate == "done":
                if board.done(shard, worker, now):
                    done[shard] += 1
            elif fate == "lost":
                board.lost(shard, worker)
            else:
                failures[shard] += 1
                board.failed(shard, worker, "why", fate)
            free.append(worker if fate in ("done", "error") else f"w{n_hired}")
            n_hired += 1
        for worker in [each for each in silent if each in holding][1:]:  # Ray notices all but one of those that say nothing
            board.lost(holding.pop(worker), worker)
            silent.discard(worker)
            free.append(f"w{n_hired}")
            n_hired += 1
        if len(free) + len(holding) < 2 or (silent and not free):
            free.append(f"w{n_hired}")
            n_hired += 1
    assert board.over
    assert sorted([*done, *(each.shard for each in board.given_up)]) == list(range(n_shards))
    assert set(done.values()) <= {1}
    assert {each.shard for each in board.given_up} == {shard for shard, n in failures.items() if n >= MOST_ATTEMPTS} - set(done)
    assert cursed <= {each.shard for each in board.given_up}


def test_a_shard_that_always_fails_is_given_up_behind_all_others() -> None:
    board, told, order = Board(range(4)), [], []
    while (shard := board.give("w0", 0.0)) is not None:
        order.append(shard)
        if shard == 1:
            told.append(board.failed(shard, "w0", "no such number"))
        else:
            board.done(shard, "w0", 0.0)
    assert order == [0, 1, 2, 3, 1, 1]
    assert told[:-1] == [None] * (MOST_ATTEMPTS - 1)
    assert board.given_up == [told[-1]]
    assert board.given_up[0].reasons == ("no such number",) * MOST_ATTEMPTS
    assert board.over


def test_the_shard_of_a_node_that_went_away_is_tried_as_often_as_that_happens() -> None:
    board = Board([7])
    for attempt in range(20):
        assert board.give(f"w{attempt}", 0.0) == 7
        board.lost(7, f"w{attempt}")
    assert not board.given_up
    assert board.retries == {"lost": 20}


def test_a_straggler_is_given_to_one_other_worker_and_the_first_answer_counts() -> None:
    board = Board(range(3))
    assert [board.give(worker, 0.0) for worker in ("w0", "w1")] == [0, 1]
    assert board.done(0, "w0", 10.0)
    assert board.give("w0", 10.0) == 2
    assert board.done(2, "w0", 20.0)
    assert board.give("w0", 20.0) is None
    assert board.give_again("w0", 20.0) is None  # 20 s is twice the usual time, not more
    assert board.n_to_do(20.0) == 1
    assert board.n_to_do(21.0) == 2
    assert board.give_again("w0", 21.0) == 1
    assert board.give_again("w2", 30.0) is None
    assert board.retries == {"straggler": 1}
    assert board.done(1, "w0", 31.0)
    assert not board.done(1, "w1", 32.0)
    assert board.over


def test_what_others_are_computing_is_left_to_them_until_they_stop() -> None:
    board = Board(range(3))
    board.learn({0, 1, 2}, {0, 1})
    assert board.give("w0", 0.0) == 2
    assert board.give("w1", 0.0) is None
    assert board.learn({1, 2}, {1}) == [0]
    board.done(2, "w0", 1.0)
    assert board.only_elsewhere
    board.learn({1}, set())
    assert board.give("w1", 1.0) == 1


def test_when_nothing_works_it_says_why_instead_of_trying_every_shard_three_times() -> None:
    board = Board(range(1000))
    n_tried = 0
    while board.hopeless is None:
        shard = board.give("w0", 0.0)
        assert shard is not None
        board.failed(shard, "w0", "the disk is full")
        n_tried += 1
    assert board.hopeless == "the disk is full"
    assert n_tried < 20
    board.done(999, "w0", 0.0)
    assert board.hopeless is None


def test_the_retries_of_a_few_bad_shards_are_not_nothing_works() -> None:
    board = Board(range(100))
    while (shard := board.give("w0", 0.0)) is not None:
        assert board.hopeless is None
        if shard < 9:
            board.failed(shard, "w0", "not finite")
        else:
            board.done(shard, "w0", 0.0)
    assert [each.shard for each in board.given_up] == list(range(9))
    assert board.over


def test_a_shard_that_exists_is_over_even_if_its_holder_never_says_so() -> None:
    board = Board([4])
    assert board.give("hung", 0.0) == 4
    assert board.learn((), ()) == []  # it may be about to
    assert board.learn((), ()) == [4]
    assert board.over
    assert not board.done(4, "hung", 1.0)


def test_a_shard_that_exists_is_left_for_one_survey_to_whoever_holds_it_here() -> None:
    board = Board(range(2))
    assert board.give("w0", 0.0) == 0
    assert board.learn({1}, ()) == []
    assert board.done(0, "w0", 1.0)


def test_a_shard_that_exists_and_whose_holder_died_is_found() -> None:
    board = Board(range(1))
    board.give("w0", 0.0)
    assert board.learn((), ()) == []
    board.lost(0, "w0")
    assert board.learn((), ()) == [0]
    assert board.over


def test_a_worker_hangs_that_takes_twenty_times_the_usual_time_and_half_an_hour() -> None:
    board = Board(range(3))
    assert [board.give(worker, 0.0) for worker in ("w0", "w1")] == [0, 1]
    assert board.hung(86_400.0) == []
    assert board.done(0, "w0", 100.0)
    assert board.hung(2000.0) == []
    assert board.hung(2001.0) == ["w1"]
    board.failed(1, "w1", "hangs", "death")
    assert board.hung(3000.0) == []


def test_a_shard_that_failed_too_often_is_not_given_again_while_another_hangs_on_it() -> None:
    board = Board([5])
    assert board.give("hung", 0.0) == 5
    for attempt in range(MOST_ATTEMPTS):
        assert board.give_again("w1", 1000.0 + attempt) == 5
        assert board.failed(5, "w1", "why") is None
    assert board.give_again("w1", 2000.0) is None
    assert board.hung(90_000.0) == ["hung"]
    assert board.failed(5, "hung", "hangs", "death") == board.given_up[0]
    assert board.over


def test_shards_that_were_found_done_say_nothing_of_how_long_one_takes() -> None:
    board = Board(range(3))
    for shard in range(2):
        board.give("w0", 0.0)
        board.done(shard, "w0", 0.001, here=False)
    assert board.give("w0", 0.0) == 2
    assert board.give_again("w1", 30.0) is None
