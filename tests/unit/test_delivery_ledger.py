"""The ledger finds each kind of breach, and finds none in a history that kept the promise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlpacker.testing.delivery.ledger import (
    BROKEN,
    CRASH,
    POISON,
    SLOW,
    SOUND,
    Came,
    Ledger,
    Sent,
    Verdict,
    Window,
    check,
)

KEYS = 3


def sent(number: int, kind: str = SOUND, copies: int = 1, attempts: int = 0) -> Sent:
    return Sent(number, f"k{number % KEYS}", kind, copies, attempts or copies)


def came(*numbers: int) -> list[Came]:
    return [Came(n, f"id-{n}") for n in numbers]


SENT = [sent(n) for n in range(9)]
BREACHES = ("lost", "renamed", "inversions", "unjustly_buried", "wrongly_answered")


def breaches(verdict: Verdict) -> dict[str, tuple[object, ...]]:
    return {name: found for name in BREACHES if (found := getattr(verdict, name))}


def test_a_history_in_which_every_row_came_once_and_in_order_is_good() -> None:
    verdict = check(SENT, came(*range(9)), [])
    assert verdict.kept
    assert verdict == Verdict(9, 9, 0)
    assert verdict.sentence() == "9 in, 9 out, 0 dead letters, 0 repeats, 0 lost"


def test_rows_of_different_keys_may_overtake_each_other() -> None:
    assert check(SENT, came(2, 1, 0, 5, 8, 3, 4, 6, 7), []).kept


def test_a_lost_row_is_found() -> None:
    verdict = check(SENT, came(0, 1, 2, 3, 5, 6, 7, 8), [])
    assert breaches(verdict) == {"lost": (4,)}
    assert not verdict.kept
    assert verdict.sentence().endswith("1 lost [4]")


def test_the_last_row_is_missed_too() -> None:
    assert check(SENT, came(*range(8)), []).lost == (8,)


def test_a_repeat_under_its_own_id_is_counted_and_breaks_nothing() -> None:
    verdict = check(SENT, came(*range(9), 2, 3, 2), [])
    assert verdict.kept
    assert (verdict.rows_out, verdict.repeats) == (9, 3)


def test_a_repeat_under_another_id_is_a_renamed_row() -> None:
    verdict = check(SENT, [*came(*range(9)), Came(4, "another")], [])
    assert breaches(verdict) == {"renamed": (4,)}
    assert "1 renamed [4]" in verdict.sentence()


def test_a_row_that_was_answered_and_buried_under_another_id_is_renamed() -> None:
    verdict = check([sent(0, BROKEN)], [Came(0, "a")], [Came(0, "b")])
    assert verdict.renamed == (0,)


def test_a_broker_that_knows_no_offsets_may_give_a_row_another_id() -> None:
    assert check(SENT, [*came(*range(9)), Came(4, "another")], [], journalled=True).kept


def test_a_producer_that_sent_a_row_again_may_find_it_under_as_many_ids() -> None:
    rows = [*SENT[:4], sent(4, attempts=2), *SENT[5:]]
    assert check(rows, [*came(*range(9)), Came(4, "another")], []).kept
    assert check(rows, [*came(*range(9)), Came(4, "b"), Came(4, "c")], []).renamed == (4,)


def test_a_row_that_overtook_one_of_its_key_is_an_inversion() -> None:
    verdict = check(SENT, came(0, 1, 2, 6, 3, 4, 5, 7, 8), [])
    assert breaches(verdict) == {"inversions": (("k0", 3, 6),)}
    assert "1 inversions" in verdict.sentence()


def test_order_is_judged_on_first_occurrences() -> None:
    assert check(SENT, came(0, 1, 2, 3, 0, 1, 4, 5, 3, 6, 7, 8), []).kept


def test_every_row_behind_the_one_that_overtook_them_is_told() -> None:
    verdict = check(SENT, came(6, 0, 3, 1, 2, 4, 5, 7, 8), [])
    assert verdict.inversions == (("k0", 0, 6), ("k0", 3, 6))


def test_order_is_not_judged_where_it_is_not_promised() -> None:
    assert check(SENT, came(*reversed(range(9))), [], ordered=False).kept


@pytest.mark.parametrize("kind", [SOUND, SLOW])
def test_a_sound_row_among_the_dead_letters_is_unjustly_buried(kind: str) -> None:
    rows = [replace(s, kind=kind) for s in SENT]
    verdict = check(rows, came(0, 1, 2, 3, 5, 6, 7, 8), came(4))
    assert breaches(verdict) == {"unjustly_buried": (4,)}
    assert "1 unjustly buried [4]" in verdict.sentence()


@pytest.mark.parametrize("kind", [POISON, CRASH, BROKEN])
def test_a_row_that_fails_by_itself_belongs_among_the_dead_letters(kind: str) -> None:
    rows = [replace(s, kind=kind) if s.number == 4 else s for s in SENT]
    good = check(rows, came(0, 1, 2, 3, 5, 6, 7, 8), came(4))
    assert good.kept
    assert (good.rows_out, good.dead_letters) == (8, 1)
    assert breaches(check(rows, came(*range(9)), [])) == {"wrongly_answered": (4,)}
    assert breaches(check(rows, came(0, 1, 2, 3, 5, 6, 7, 8), [])) == {"lost": (4,)}


def test_a_letter_that_came_twice_is_one() -> None:
    assert check([sent(0, POISON)], [], came(0, 0)) == Verdict(1, 0, 1)


def test_both_of_two_twins_are_awaited_under_ids_of_their_own() -> None:
    twins = [sent(0, copies=2)]
    assert check(twins, [Came(0, "a"), Came(0, "b")], []).kept
    assert check(twins, [Came(0, "a"), Came(0, "a")], []).lost == (0,)
    assert check(twins, [Came(0, "a")], []).lost == (0,)
    assert check(twins, [Came(0, "a"), Came(0, "b"), Came(0, "c")], []).renamed == (0,)


def test_rows_that_were_never_sent_or_can_not_be_told_count_for_nothing() -> None:
    assert check(SENT, [*came(*range(9)), Came(77, "x"), Came(None, "y")], [Came(None, "z")]) == Verdict(
        9, 9, 0
    )


def test_a_window_judges_its_own_rows_alone() -> None:
    ledger = Ledger(sent=list(SENT), outputs=came(0, 1, 2, 6, 3, 5, 7, 8))
    assert ledger.verdict(Window("first", 0, 3)).kept
    assert ledger.verdict(Window("lossy", 3, 6)).lost == (4,)
    assert ledger.verdict(Window("after", 6, 9)).kept  # what overtook whom is seen where both are
    whole = ledger.verdict()
    assert (whole.lost, whole.inversions) == ((4,), (("k0", 3, 6),))


def test_what_is_missing_is_counted_by_message() -> None:
    ledger = Ledger(sent=[sent(0, copies=2), sent(1), sent(2, POISON)])
    assert ledger.missing() == 4
    ledger.outputs += [Came(0, "a"), Came(0, "a"), Came(1, "b")]
    assert ledger.missing() == 2
    ledger.letters.append(Came(2, "c"))
    ledger.outputs.append(Came(0, "d"))
    assert ledger.missing() == 0
