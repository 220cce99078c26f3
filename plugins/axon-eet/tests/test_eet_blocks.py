"""Blocks and the schedule: whatever is asked and cancelled, no block is lost, or written while it is shared."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from axon_eet.blocks import GONE, SIZE, Blocks, BlockTable, blocks_for
from axon_eet.schedule import Load, plan_step


def fill(blocks, table, tokens):
    """Write these tokens behind those of `table`, adopting what is there."""
    computed = SIZE * table.full
    while computed + SIZE <= len(tokens):
        prefix = (table.prefix, tuple(tokens[computed : computed + SIZE]))
        if not blocks.find(prefix):
            break
        blocks.adopt(table, prefix)
        computed += SIZE
    if blocks_for(len(tokens)) - len(table.blocks) > blocks.available:
        return False
    blocks.take(table, len(tokens))
    while SIZE * (table.full + 1) <= len(tokens):
        blocks.fill(table, tokens[SIZE * table.full : SIZE * (table.full + 1)])
    return True


def check(blocks, tables):
    uses = Counter(block for table in tables for block in table.blocks if block != GONE)
    assert [uses[block] for block in range(blocks.total)] == blocks.uses
    assert blocks.available == sum(not used for used in blocks.uses)
    for table in tables:  # what is not full may be written, and is nobody else's
        assert all(uses[block] == 1 for block in table.blocks[table.full :])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ask", "end", "part", "forget"]), st.integers(0, 99)), max_size=60))
def test_no_block_is_lost_or_written_while_it_is_shared(actions):
    blocks, tables, contents = Blocks(9), [], {}
    for action, number in actions:
        if action == "ask":
            tokens = [number % 2] * (number % 3 * SIZE) + [number % 5] * (number % 40)
            table = BlockTable()
            if tokens and fill(blocks, table, tokens):
                tables.append(table)
                contents[id(table)] = tokens
            else:
                blocks.release(table)
        elif tables:
            table = tables[number % len(tables)]
            if action == "part":
                blocks.release(table, min(table.full, number % 3))
            else:
                (blocks.release if action == "end" else blocks.forget)(table)
                tables.remove(table)
        check(blocks, tables)
    held = {}
    for table in tables:  # one block, one content, with everything before it
        for i, block in enumerate(table.blocks[: table.full]):
            if block != GONE:
                assert (
                    held.setdefault(block, contents[id(table)][: SIZE * (i + 1)])
                    == contents[id(table)][: SIZE * (i + 1)]
                )


def test_the_least_recently_used_beginning_goes_first_and_its_last_block_before_its_first():
    blocks = Blocks(4)
    texts = [[i] * (2 * SIZE) for i in range(2)]
    for tokens in texts:
        table = BlockTable()
        fill(blocks, table, tokens)
        blocks.release(table)
    assert (blocks.kept, blocks.available) == (4, 4)
    again = BlockTable()
    fill(blocks, again, texts[0])
    blocks.release(again)
    other = BlockTable()
    fill(blocks, other, [9] * (2 * SIZE))  # takes the two blocks of the second text
    assert blocks.find((0, tuple(texts[0][:SIZE]))) and not blocks.find((0, tuple(texts[1][:SIZE])))
    one_more = BlockTable()
    fill(blocks, one_more, [8])
    assert blocks.find((0, tuple(texts[0][:SIZE]))) and blocks.kept == 1


def test_equal_blocks_after_different_beginnings_are_not_confused():
    blocks = Blocks(8)
    first, second = BlockTable(), BlockTable()
    fill(blocks, first, [1] * SIZE + [7] * SIZE)
    fill(blocks, second, [2] * SIZE + [7] * SIZE)
    assert not set(first.blocks) & set(second.blocks)


def load(computed=0, pending=1, held=(), filling=None):
    return Load(computed, pending, pending, len(held), held, filling)


def counts(loads, *, rows=16, chunk=8, alone=100, n=50):
    uses = [0] * n
    for item in loads:
        for block in item.held:
            uses[block] += 1
    return plan_step(loads, rows=rows, chunk=chunk, alone=alone, uses=uses, free=uses.count(0))


def test_prompts_share_what_is_left_beside_texts_that_grow():
    growing = load(20, 1, (0, 1))
    assert counts([growing, load(0, 5), load(0, 30), load(0, 9)]).counts == [1, 5, 3, 0]
    assert counts([growing, load(0, 30), load(0, 9)]).counts == [1, 4, 0]  # of one or two prompts, half as much
    assert counts([growing, load(0, 30), load(0, 9)], chunk=1).counts == [1, 1, 0]
    assert counts([load(0, 5), load(0, 30), load(0, 90)]).counts == [5, 30, 65]
    assert counts([load(0, 5), load(0, 5), growing], rows=2).counts == [5, 5, 0]


def test_a_text_that_arrived_last_gives_its_blocks_up_and_a_shared_block_frees_nothing():
    first, second, third = load(SIZE, 1, (0,)), load(SIZE, 1, (1,)), load(SIZE + 3, 1, (2, 3))
    found = counts([first, second, third], n=4)
    assert (found.counts, found.preempted) == ([1, 1, 0], [2])
    found = counts([first, second, third._replace(held=(0, 3), length=2)], n=4)  # one of them is the first text's too
    assert (found.counts, found.preempted) == ([1, 1, 0], [2])
    found = counts([first, load(SIZE, 1, (0,)), load(SIZE, 1, (0,))], n=1)
    assert (found.counts, found.preempted) == ([0, 0, 0], [2, 1])


def test_a_prompt_starts_only_if_all_of_it_fits():
    growing = load(5, 1, (0,))
    assert counts([growing, load(0, 5 * SIZE)], n=5).counts == [1, 0]
    assert counts([growing, load(0, 4 * SIZE)], n=5).counts == [1, 4]


def test_a_text_waits_for_the_block_that_another_computes():
    prefix = (0, (1,) * SIZE)
    loads = [load(0, 40, (), prefix), load(0, 40, (), prefix), load(0, 40, (), (0, (2,) * SIZE))]
    assert counts(loads).counts == [40, 0, 40]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(1, 90), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(0, 4),
)
def test_a_plan_fits_into_the_memory_and_advances_the_first(texts, rows, chunk, spare):
    loads, block = [], 0
    for computed, pending, held in texts:
        own = tuple(range(block, block + blocks_for(computed))) if held else ()
        block += len(own)
        loads.append(load(computed if held else 0, pending, own))
    most = max(blocks_for(item.computed + item.pending) for item in loads)
    n = max(block, most) + spare
    found = counts(loads, rows=rows, chunk=chunk, n=n)
    needed = sum(
        0 if i in found.preempted else max(item.length, blocks_for(item.computed + count) if count else 0)
        for i, (item, count) in enumerate(zip(loads, found.counts, strict=True))
    )
    assert needed <= n
    assert found.counts[0] > 0 and all(count <= item.pending for item, count in zip(loads, found.counts, strict=True))
    assert not any(found.counts[i] for i in found.preempted) and not any(found.counts[rows:])
    prompts = sum(count for item, count in zip(loads, found.counts, strict=True) if item.pending > 1)
    assert prompts <= (chunk if any(item.pending == 1 for item in loads[:rows]) else 100)
    for later in found.preempted:  # never for one that stands after it
        assert not any(found.counts[later:])
