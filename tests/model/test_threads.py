"""Threads that recommend while others add and remove items see one state of the catalogue."""

import _thread
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from modeling_ttds.lock_ttds import TTDSLock
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.reranker_ttds import FEATURES, TTDSReranker
from recipes.ranking.cooccurrence import build_cooccurrence
from tests.model.test_generation import CODES, LEVELS, START, make_model


@pytest.fixture
def joined(model, split):
    torch.manual_seed(0)
    model.set_reranker(
        build_cooccurrence(split.training, split.num_items), TTDSReranker(len(FEATURES)).eval()
    )
    return model


@pytest.fixture(autouse=True)
def many_switches():
    """Let threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def sizes(model):
    with model.lock.reading():
        memory = model.cooccurrence
        tables = (model.item_sids, model.item_text, model.item_collaborative, memory.items)
        found = {len(table) for table in tables} | {len(model.catalogue), len(model.row_of)}
        found |= {len(memory.starts) - 1, model.config.num_items, len(model.tokenizer.table)}
        time.sleep(0)
        return found | {len(model.item_sids)}


def test_readers_and_writers_at_once(joined, tmp_path):
    model, old = joined, [entry["item_id"] for entry in joined.catalogue]
    stop, lengths = threading.Event(), []

    def ask(number):
        count = 0
        while not stop.is_set() or count < 3:
            history = [old[10 + number], old[20 + number]]
            (found,) = model.recommend([history], top_k=5, rerank=bool(count % 2))
            assert len({best.item_id for best in found}) == 5
            assert model.explain(history, history[:1])
            (seen,) = [sizes(model)] if count % 2 else [{0}]
            assert len(seen) == 1, f"one state has one size, not {seen}"
            lengths.extend(seen)
            count += 1
        return count

    def change(number):
        for n in range(8):
            names = [f"{number}-{n}-{k}" for k in range(2)]
            model.add_items([{"item_id": i, "title": f"Walnut kettle {i}"} for i in names])
            model.remove_items(names[:1])
            if n == 4:
                model.save_pretrained(tmp_path / f"m{number}")

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, number) for number in range(3)]
        changed = [pool.submit(change, number) for number in range(3)]
        try:
            for job in changed:
                job.result()
        finally:
            stop.set()
        assert all(job.result() >= 3 for job in asked)

    names = [entry["item_id"] for entry in model.catalogue]
    assert names[:72] == old
    assert set(names[72:]) == {f"{number}-{n}-1" for number in range(3) for n in range(8)}
    assert sizes(model) == {96} and len(model.item_sids.unique(dim=0)) == 96
    assert model.tokenizer.decode_items(model.tokenizer.encode_items(names)) == names
    assert len({length for length in lengths if length}) > 1, "readers did meet several states"
    for number in range(3):
        saved = TTDSForCausalLM.from_pretrained(tmp_path / f"m{number}")
        table = saved.tokenizer.sid_table
        assert list(table) == [entry["item_id"] for entry in saved.catalogue]
        assert list(table.values()) == saved.item_sids.tolist()


def test_a_writer_waits_for_readers_and_new_readers_for_it():
    lock, order = TTDSLock(), []
    reading, waiting = threading.Event(), threading.Event()

    def read_long():
        with lock.reading():
            reading.set()
            waiting.wait(5)
            time.sleep(0.1)
            with lock.reading():  # again, while a writer waits
                order.append("long reader")

    def write():
        with lock.one_writer:
            waiting.set()
            with lock.swapping():
                order.append("writer")

    def read_late():
        with lock.reading():
            order.append("late reader")

    threads = [threading.Thread(target=read_long)]
    threads[0].start()
    assert reading.wait(5)
    threads.append(threading.Thread(target=write))
    threads[1].start()
    assert waiting.wait(5)
    time.sleep(0.02)  # by now it waits for the reader
    threads.append(threading.Thread(target=read_late))
    threads[2].start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert order == ["long reader", "writer", "late reader"]


def test_a_writer_that_is_interrupted_while_it_waits_lets_readers_in():
    lock, done = TTDSLock(), threading.Event()

    def read_long():
        with lock.reading():
            time.sleep(0.1)
            _thread.interrupt_main()
            done.wait(5)

    reader = threading.Thread(target=read_long)
    reader.start()
    time.sleep(0.02)
    with pytest.raises(KeyboardInterrupt), lock.swapping():
        raise AssertionError("a reader is there")
    late = threading.Thread(target=lambda: lock.reading().__enter__(), daemon=True)
    late.start()
    late.join(5)
    assert not late.is_alive(), "nobody is changing anything"
    done.set()
    reader.join(5)


@pytest.mark.parametrize("words", [[5, 3, 6, 2], None], ids=["next item", "free text"])
def test_a_catalogue_that_changes_waits_for_what_is_generated(words):
    model = make_model()
    model.config.prompt_ids = words
    rows = model.history_rows([["i1", "i2"]], "error")
    ids = model.bind(
        torch.tensor([[7, 8]]) if words is None else model.history_prompts(rows, rows)[0]
    )
    allowed = None if words is None else ["i7", "i50"]
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 3, "allowed": allowed}
    expected = model.generate(ids, **options)
    begun, writer = threading.Event(), None

    class Slow(LogitsProcessor):
        def __call__(self, input_ids, scores):
            begun.set()
            writer.join(0.1)
            assert writer.is_alive() and len(model.row_of) == 60, "it waits"
            return scores

    writer = threading.Thread(target=lambda: begun.wait(5) and model.remove_items(["i0", "i3"]))
    writer.start()
    made = model.generate(ids, logits_processor=LogitsProcessorList([Slow()]), **options)
    writer.join(5)
    assert torch.equal(made, expected) and len(model.row_of) == 58


def test_allowed_items_are_those_of_one_state():
    model = make_model()
    rows = model.history_rows([["i1", "i2"]], "error")
    ids = model.bind(model.history_prompts(rows, rows)[0])
    wanted, stop = set(map(tuple, model.item_sids[-2:].tolist())), threading.Event()

    def change():
        while not stop.is_set():
            gone = [e for e in model.catalogue if e["item_id"] not in ("i58", "i59")][:10]
            model.remove_items([entry["item_id"] for entry in gone])
            model.add_items(gone, text_embeddings=torch.ones(10, 6))

    writer = threading.Thread(target=change)
    writer.start()
    try:
        for _ in range(60):
            made = model.generate(ids, allowed=["i58", "i59"], do_sample=False, pad_token_id=0)
            codes = made[0, -LEVELS:] - START - torch.arange(LEVELS) * CODES
            assert tuple(codes.tolist()) in wanted
    finally:
        stop.set()
        writer.join(10)


def test_an_error_lets_go_of_the_lock(joined):
    for call in (
        lambda: joined.recommend([["nobody"]]),
        lambda: joined.add_items([{"item_id": "a"}, {"item_id": "a"}]),
        lambda: joined.remove_items(["nobody"]),
        lambda: joined.remove_items([entry["item_id"] for entry in joined.catalogue]),
    ):
        with pytest.raises(ValueError):
            call()
    joined.add_items([{"item_id": "a", "title": "Kettle"}])
    assert joined.recommend([["a"]], top_k=3)
