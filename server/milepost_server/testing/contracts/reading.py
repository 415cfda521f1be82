"""Contract of Load, List, ListWorkflows, GetWorkflow and GetEntryHistory."""
# ruff: noqa: D102 - a test's name is its sentence

from __future__ import annotations

import json

import pytest

from milepost_server.limits import DEFAULT_LIMITS
from milepost_server.model import CheckpointFilter, EntryVersion, ForkMode, ProbeAnswer, Selection, Status
from milepost_server.testing.builders import ManualClock, Store, data_value, json_value, record, refused, save
from milepost_server.testing.contracts.base import ContractBase

PAGES_MAX = 1_000


def read_pages(store: Store, workflow_id: str, *, newest_first: bool = True, page_size: int = 2) -> list[list[str]]:
    """Read all pages of a list as the service does, with what the page before says."""
    answer = store.page(workflow_id, newest_first=newest_first, page_size=page_size)
    pages = [[loaded.row.checkpoint_id for loaded in answer.checkpoints]]
    while answer.position is not None:
        assert len(pages) < PAGES_MAX
        answer = store.page(
            workflow_id,
            newest_first=newest_first,
            page_size=page_size,
            position=answer.position,
            sequence_max=answer.sequence_max,
            incarnation=answer.workflow.incarnation,
        )
        pages.append([loaded.row.checkpoint_id for loaded in answer.checkpoints])
    return pages


class LoadContract(ContractBase):
    """Reading one checkpoint."""

    def test_the_head_is_read_where_nothing_is_named(self, store: Store) -> None:
        store.save_line("w", "b", "a")
        assert store.load("w").row.checkpoint_id == "a"

    def test_a_checkpoint_is_read_by_id(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        assert store.state("w", "a") == {"at": "a"}

    def test_a_checkpoint_is_read_by_sequence(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        assert store.load("w", sequence=1).row.checkpoint_id == "a"

    def test_the_newest_checkpoint_with_a_status_is_read(self, store: Store) -> None:
        for checkpoint_id, status in zip(
            "abcd", [Status.FAILED, Status.WAITING, Status.FAILED, Status.RUNNING], strict=True
        ):
            store.save("w", checkpoint_id, status=status)
        assert store.load("w", statuses=[Status.FAILED]).row.checkpoint_id == "c"
        assert store.load("w", statuses=[Status.WAITING, Status.CANCELLED]).row.checkpoint_id == "b"

    def test_the_answer_names_the_head_beside_an_older_checkpoint(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        assert store.head("w") == "b"

    def test_a_scope_is_read_alone(self, store: Store) -> None:
        store.save("w", "a", scope="s")
        store.save("w", "b")
        assert store.load("w", scope="s").row.checkpoint_id == "a"

    def test_an_unknown_workflow_is_not_found(self, store: Store) -> None:
        with refused("WORKFLOW_NOT_FOUND") as refusal:
            store.load("nowhere")
        assert refusal.error.metadata == {"namespace": "default", "workflow_id": "nowhere"}

    def test_a_workflow_of_another_namespace_is_not_found(self, store: Store) -> None:
        store.save("w", "a", namespace="other")
        with refused("WORKFLOW_NOT_FOUND"):
            store.load("w")

    def test_a_deleted_workflow_is_not_found(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        with refused("WORKFLOW_NOT_FOUND"):
            store.load("w", "a")

    def test_an_unknown_id_is_not_found(self, store: Store) -> None:
        store.save("w", "a")
        with refused("CHECKPOINT_NOT_FOUND") as refusal:
            store.load("w", "nowhere")
        assert refusal.error.metadata == {"workflow_id": "w", "scope": "", "checkpoint_id": "nowhere"}

    def test_a_deleted_checkpoint_is_not_found(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_ids("w", "a")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.load("w", "a")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.load("w", sequence=1)

    def test_a_checkpoint_of_a_deleted_incarnation_is_not_found(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.delete_workflow("w")
        store.save("w", "c")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.load("w", "a")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.load("w", sequence=2)

    def test_an_unknown_scope_is_not_found(self, store: Store) -> None:
        store.save("w", "a")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.load("w", scope="s")

    def test_a_scope_of_a_deleted_incarnation_is_not_found(self, store: Store) -> None:
        store.save("w", "a", scope="s")
        store.delete_workflow("w")
        store.save("w", "b")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.load("w", scope="s")

    def test_an_unknown_sequence_is_not_found(self, store: Store) -> None:
        store.save("w", "a")
        with refused("CHECKPOINT_NOT_FOUND") as refusal:
            store.load("w", sequence=2)
        assert refusal.error.metadata["sequence"] == "2"

    def test_a_sequence_of_another_scope_is_not_found(self, store: Store) -> None:
        store.save("w", "a")
        store.save("w", "b", scope="s")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.load("w", sequence=2)

    def test_a_status_that_no_checkpoint_has_is_not_found(self, store: Store) -> None:
        store.save("w", "a")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.load("w", statuses=[Status.FAILED])


class ListContract(ContractBase):
    """Reading a workflow's checkpoints, a page at a time."""

    def test_newest_come_first(self, store: Store) -> None:
        store.save_line("w", "b", "c", "a")
        assert store.ids("w") == ["a", "c", "b"]

    def test_oldest_come_first_where_asked(self, store: Store) -> None:
        store.save_line("w", "b", "c", "a")
        assert store.ids("w", newest_first=False) == ["b", "c", "a"]

    def test_all_scopes_are_listed_together(self, store: Store) -> None:
        for number, scope in enumerate(["", "s", "", "t"]):
            store.save("w", str(number), scope=scope)
        assert store.ids("w") == ["3", "2", "1", "0"]

    @pytest.mark.parametrize("scope, ids", [("", ["2", "0"]), ("s", ["3", "1"]), ("nowhere", [])])
    def test_one_scope_is_listed_alone(self, store: Store, scope: str, ids: list[str]) -> None:
        for number in range(4):
            store.save("w", str(number), scope="s" if number % 2 else "")
        assert store.ids("w", scope=scope) == ids

    def test_an_unknown_workflow_is_not_listed(self, store: Store) -> None:
        with refused("WORKFLOW_NOT_FOUND"):
            store.ids("nowhere")

    def test_a_workflow_without_checkpoints_lists_none(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_ids("w", "a")
        assert store.ids("w") == []

    def test_state_and_records_are_answered_where_asked(self, store: Store) -> None:
        store.save("w", "a", {"x": 1}, records=(record("t"),))
        store.save("w", "b", {"x": 2})
        listed = store.page("w", selection=Selection(with_steps=False)).checkpoints
        assert [loaded.entries for loaded in listed] == [{"x": json_value(2)}, {"x": json_value(1)}]
        assert [loaded.records for loaded in listed] == [(), (record("t"),)]

    def test_state_and_records_are_left_out_where_not_asked(self, store: Store) -> None:
        store.save("w", "a", {"x": 1}, records=(record("t"),), steps_added=("s",))
        (listed,) = store.page("w").checkpoints
        assert (listed.entries, listed.records, listed.steps) == (None, (), ())
        assert (listed.record_count, listed.row.entry_count, listed.row.step_count) == (1, 1, 1)

    def test_checkpoints_are_filtered_by_status(self, store: Store) -> None:
        for number, status in enumerate([Status.RUNNING, Status.WAITING, Status.RUNNING, Status.FAILED]):
            store.save("w", str(number), status=status)
        wanted = CheckpointFilter(statuses=frozenset({Status.WAITING, Status.FAILED}))
        assert store.ids("w", filter=wanted) == ["3", "1"]

    def test_checkpoints_are_filtered_by_step(self, store: Store) -> None:
        for number, step in enumerate(["one", "", "one", "two"]):
            store.save("w", str(number), current_step=step)
        assert store.ids("w", filter=CheckpointFilter(current_step="one")) == ["2", "0"]
        assert store.ids("w", filter=CheckpointFilter(current_step="")) == ["1"]

    def test_checkpoints_are_filtered_by_run(self, store: Store) -> None:
        for number in range(4):
            store.save("w", str(number), run_id=f"run{number % 2}")
        assert store.ids("w", filter=CheckpointFilter(run_id="run1")) == ["3", "1"]

    @pytest.mark.parametrize(
        "before, ids",
        [
            ("b", ["a", "a!", "B", ""]),
            ("a", ["B", ""]),
            ("a!!", ["a", "a!", "B", ""]),
            ("é", ["z", "a", "b", "a!", "B", ""]),
            ("\uffff", ["z", "é", "a", "b", "a!", "B", ""]),
            ("\U0010ffff", ["\U0001f600", "z", "é", "a", "b", "a!", "B", ""]),
            ("", []),
        ],
    )
    def test_ids_before_one_are_compared_bytewise(self, store: Store, before: str, ids: list[str]) -> None:
        names = ["B", "a!", "b", "a", "é", "z", "\U0001f600"]
        store.save_line("w", *names)
        wanted = CheckpointFilter(before_checkpoint_id=before)
        assert store.ids("w", filter=wanted) == [name for name in ids if name]

    def test_metadata_is_filtered_by_containment(self, store: Store) -> None:
        metadata = [
            {"source": "loop", "step": 1},
            {"source": "loop", "step": 2, "tags": ["x", "y"]},
            {"step": True},
            None,
            {"step": 10**30},
        ]
        for number, content in enumerate(metadata):
            store.save("w", str(number), metadata="" if content is None else json.dumps(content))

        def contain(wanted: dict[str, object]) -> list[str]:
            return store.ids("w", filter=CheckpointFilter(metadata_contains=wanted))

        assert contain({"source": "loop"}) == ["1", "0"]
        assert contain({"source": "loop", "step": 2.0}) == ["1"]
        assert contain({"step": 1}) == ["0"]
        assert contain({"tags": ["y"]}) == ["1"]
        assert contain({"step": 10**30}) == ["4"]
        assert contain({}) == ["4", "3", "2", "1", "0"]

    def test_filters_hold_together(self, store: Store) -> None:
        for number in range(8):
            store.save(
                "w",
                str(number),
                current_step="odd" if number % 2 else "even",
                status=Status.WAITING if number < 4 else Status.RUNNING,
                scope="s" if number == 1 else "",
            )
        wanted = CheckpointFilter(current_step="odd", statuses=frozenset({Status.WAITING}), before_checkpoint_id="9")
        assert store.ids("w", filter=wanted, scope="") == ["3"]

    @pytest.mark.parametrize("newest_first", [True, False])
    def test_pages_follow_each_other_without_gap_or_overlap(self, store: Store, newest_first: bool) -> None:
        store.save_line("w", *"abcde")
        pages = [["e", "d"], ["c", "b"], ["a"]] if newest_first else [["a", "b"], ["c", "d"], ["e"]]
        assert read_pages(store, "w", newest_first=newest_first) == pages

    def test_a_last_page_that_is_full_has_no_next_one(self, store: Store) -> None:
        store.save_line("w", *"abcd")
        assert read_pages(store, "w") == [["d", "c"], ["b", "a"]]

    def test_saves_between_pages_do_not_show_oldest_first(self, store: Store) -> None:
        store.save_line("w", *"abc")
        first = store.page("w", newest_first=False, page_size=2)
        store.save("w", "d")
        second = store.page(
            "w", newest_first=False, page_size=2, position=first.position, sequence_max=first.sequence_max
        )
        assert [loaded.row.checkpoint_id for loaded in second.checkpoints] == ["c"]
        assert second.position is None

    def test_saves_between_pages_do_not_move_newest_first(self, store: Store) -> None:
        store.save_line("w", *"abcd")
        first = store.page("w", page_size=2)
        store.save_line("w", "e", "f")
        assert store.ids("w", page_size=2, position=first.position, sequence_max=first.sequence_max) == ["b", "a"]

    def test_deletes_between_pages_leave_the_rest(self, store: Store) -> None:
        store.save_line("w", *"abcdef")
        first = store.page("w", page_size=2)
        store.delete_ids("w", "e", "d")
        assert store.ids("w", page_size=2, position=first.position, sequence_max=first.sequence_max) == ["c", "b"]

    def test_only_sequences_up_to_a_bound_are_listed(self, store: Store) -> None:
        store.save_line("w", *"abcd")
        assert store.ids("w", sequence_max=2) == ["b", "a"]
        assert store.ids("w", sequence_max=2, newest_first=False) == ["a", "b"]
        assert store.ids("w", sequence_max=0) == []

    def test_a_page_ends_before_the_item_that_would_pass_its_bytes(self, store: Store) -> None:
        for number in range(5):
            store.save("w", str(number), {"x": data_value(bytes([number]) * 1_000)})
        answer = store.page("w", bytes_max=3_000, selection=Selection())
        assert 1 <= len(answer.checkpoints) < 3
        rest = store.ids("w", position=answer.position, bytes_max=100_000, selection=Selection())
        assert len(answer.checkpoints) + len(rest) == 5

    def test_a_page_has_one_item_at_least(self, store: Store) -> None:
        for number in range(3):
            store.save("w", str(number), {"x": data_value(bytes([number]) * 1_000)})
        answer = store.page("w", bytes_max=10, selection=Selection())
        assert [loaded.row.checkpoint_id for loaded in answer.checkpoints] == ["2"]
        assert answer.position is not None

    def test_state_that_is_left_out_does_not_count_against_a_pages_bytes(self, store: Store) -> None:
        for number in range(5):
            store.save("w", str(number), {"x": data_value(bytes([number]) * 100_000)})
        assert len(store.ids("w", bytes_max=10_000)) == 5

    def test_a_filtered_page_may_be_empty_and_have_a_next_one(self, store: Store) -> None:
        store.save("w", "wanted", current_step="wanted")
        store.save_line("w", *(str(number) for number in range(9)))
        wanted = CheckpointFilter(current_step="wanted")
        first = store.page("w", filter=wanted, rows_examined_max=5)
        assert first.checkpoints == ()
        assert first.position is not None
        second = store.page("w", filter=wanted, rows_examined_max=5, position=first.position)
        assert [loaded.row.checkpoint_id for loaded in second.checkpoints] == ["wanted"]

    def test_a_filtered_list_of_more_rows_than_a_slice_finds_all(self, store: Store) -> None:
        rows = 2_500
        store.engine.execute(
            [
                save("w", str(number), parent_id="", current_step="wanted" if number % 1_000 == 7 else "")
                for number in range(rows)
            ]
        )
        wanted = CheckpointFilter(current_step="wanted")
        assert store.ids("w", filter=wanted) == ["2007", "1007", "7"]
        assert store.ids("w", filter=wanted, newest_first=False, page_size=2) == ["7", "1007"]

    def test_large_metadata_counts_as_many_rows_for_a_filter_that_must_be_held_against_much_of_it(
        self, store: Store
    ) -> None:
        store.save("w", "wanted", parent_id="", metadata='{"a": [1, {"k": 1}]}')
        large = f'{{"a": [{", ".join(["{}"] * 10_000)}]}}'
        for number in range(5):
            store.save("w", str(number), parent_id="", metadata=large)
        wanted = CheckpointFilter(metadata_contains={"a": [{"k": 1}]})
        found: list[list[str]] = []
        position: int | None = None
        while not found or position is not None:
            page = store.page("w", filter=wanted, position=position, rows_examined_max=60)
            found.append([each.row.checkpoint_id for each in page.checkpoints])
            position = page.position
        assert found == [[], [], ["wanted"]]

    def test_a_page_is_bounded_in_bytes_also_where_it_takes_more_rows_than_a_slice(self, store: Store) -> None:
        large = f'{{"m": "{"x" * 3_000}"}}'
        store.save("w", "old", parent_id="", current_step="wanted", metadata=large)
        store.engine.execute([save("w", str(number), parent_id="") for number in range(1_000)])
        store.save("w", "new", parent_id="", current_step="wanted", metadata=large)
        page = store.page("w", filter=CheckpointFilter(current_step="wanted"), bytes_max=5_000)
        assert [each.row.checkpoint_id for each in page.checkpoints] == ["new"]
        assert page.position is not None

    def test_a_page_of_a_deleted_incarnation_has_expired(self, store: Store) -> None:
        store.save_line("w", *"abc")
        first = store.page("w", page_size=2)
        store.delete_workflow("w")
        store.save_line("w", *"def")
        with refused("PAGE_EXPIRED") as refusal:
            store.page("w", position=first.position, incarnation=first.workflow.incarnation)
        assert refusal.error.metadata == {"workflow_id": "w"}

    def test_pruned_parents_are_shown(self, store: Store) -> None:
        store.save_line("w", *"abc")
        store.delete_ids("w", "a")
        assert [loaded.parent_pruned for loaded in store.page("w").checkpoints] == [False, True]


LONG_PREFIX = "p" * 500
LONG_IDS = [
    LONG_PREFIX,
    LONG_PREFIX + "\x01",
    LONG_PREFIX + "a" * 523,
    LONG_PREFIX + "a" * 524,
    LONG_PREFIX + "a" * 522 + "é",
    LONG_PREFIX + "b" * 524,
    LONG_PREFIX + "é" * 262,
    LONG_PREFIX + "\U0001f600" * 131,
    LONG_PREFIX[:-1] + "q",
]
SHORT_IDS = [
    "A",
    "B",
    "a",
    "a b",
    "a/b",
    "aa",
    "b",
    "\x01",
    "é",
    "ée",
    "\uffff",
    "\U0001f600",
    "\U0001f600a",
    "10",
    "9",
]


class ListWorkflowsContract(ContractBase):
    """Reading a namespace's workflows, a page at a time."""

    def test_workflows_are_listed_bytewise(self, store: Store) -> None:
        for workflow_id in SHORT_IDS:
            store.save(workflow_id, "a")
        assert store.workflow_ids() == sorted(SHORT_IDS, key=str.encode)

    def test_long_ids_with_a_common_start_are_listed_bytewise(self, store: Store) -> None:
        for workflow_id in [*LONG_IDS, *SHORT_IDS]:
            store.save(workflow_id, "a")
        assert store.workflow_ids() == sorted([*LONG_IDS, *SHORT_IDS], key=str.encode)

    def test_long_ids_with_a_common_start_are_workflows_of_their_own(self, store: Store) -> None:
        for workflow_id in LONG_IDS:
            store.save(workflow_id, "a", {"id": workflow_id})
        assert [store.state(workflow_id)["id"] for workflow_id in LONG_IDS] == LONG_IDS

    def test_a_deleted_long_id_leaves_its_neighbours(self, store: Store, clock: ManualClock) -> None:
        for workflow_id in LONG_IDS:
            store.save(workflow_id, "a")
        for workflow_id in LONG_IDS[::2]:
            store.delete_workflow(workflow_id)
        clock.advance(DEFAULT_LIMITS.replay_window_ms)
        store.sweep()
        assert store.workflow_ids() == sorted(LONG_IDS[1::2], key=str.encode)
        assert store.count("workflows") == len(LONG_IDS[1::2])

    @pytest.mark.parametrize(
        "prefix", ["a", "é", "\U0001f600", "p", LONG_PREFIX, LONG_PREFIX + "a" * 10, LONG_IDS[3], "nowhere", "\uffff"]
    )
    def test_only_ids_with_a_prefix_are_listed(self, store: Store, prefix: str) -> None:
        for workflow_id in [*LONG_IDS, *SHORT_IDS]:
            store.save(workflow_id, "a")
        expected = sorted((name for name in [*LONG_IDS, *SHORT_IDS] if name.startswith(prefix)), key=str.encode)
        assert store.workflow_ids(prefix=prefix) == expected

    @pytest.mark.parametrize("page_size", [1, 2, 5, 100])
    def test_pages_follow_each_other_by_id(self, store: Store, page_size: int) -> None:
        for workflow_id in [*LONG_IDS, *SHORT_IDS]:
            store.save(workflow_id, "a")
        found: list[str] = []
        after: str | None = None
        for _ in range(PAGES_MAX):
            answer = store.list_workflows(page_size=page_size, after_workflow_id=after)
            assert len(answer.workflows) <= page_size
            found += [each.workflow.workflow_id for each in answer.workflows]
            after = answer.after_workflow_id
            if after is None:
                break
        assert found == sorted([*LONG_IDS, *SHORT_IDS], key=str.encode)

    def test_a_page_may_start_after_an_id_that_is_gone(self, store: Store) -> None:
        store.save("a", "a")
        store.save("c", "a")
        assert store.workflow_ids(after_workflow_id="b") == ["c"]
        assert store.workflow_ids(after_workflow_id=LONG_IDS[3]) == []

    def test_workflows_of_other_namespaces_are_not_listed(self, store: Store) -> None:
        store.save("w", "a")
        store.save("v", "a", namespace="other")
        assert store.workflow_ids() == ["w"]
        assert store.workflow_ids(namespace="other") == ["v"]
        assert store.workflow_ids(namespace="nowhere") == []

    def test_deleted_workflows_are_not_listed(self, store: Store) -> None:
        for workflow_id in "abc":
            store.save(workflow_id, "a")
        store.delete_workflow("b")
        assert store.workflow_ids() == ["a", "c"]

    def test_a_workflow_that_is_made_again_is_listed_once(self, store: Store) -> None:
        store.save("w", "a")
        store.delete_workflow("w")
        store.save("w", "b")
        assert store.workflow_ids() == ["w"]

    def test_workflows_are_filtered_by_status(self, store: Store) -> None:
        store.save("a", "a", status=Status.WAITING)
        store.save("b", "a")
        store.save("c", "a", status=Status.WAITING, scope="s")
        assert store.workflow_ids(statuses=frozenset({Status.WAITING})) == ["a"]

    def test_workflows_of_several_statuses_are_listed_in_one_order(self, store: Store) -> None:
        statuses = [Status.WAITING, Status.RUNNING, Status.COMPLETED, Status.FAILED]
        for number, workflow_id in enumerate([*LONG_IDS, *SHORT_IDS]):
            store.save(workflow_id, "a", status=statuses[number % len(statuses)])
        wanted = frozenset({Status.WAITING, Status.RUNNING})
        expected = [name for number, name in enumerate([*LONG_IDS, *SHORT_IDS]) if number % len(statuses) < 2]
        expected.sort(key=str.encode)
        assert store.workflow_ids(statuses=wanted) == expected
        for page_size in (1, 2, 3):
            found: list[str] = []
            after: str | None = None
            for _ in range(PAGES_MAX):
                answer = store.list_workflows(statuses=wanted, page_size=page_size, after_workflow_id=after)
                found += [each.workflow.workflow_id for each in answer.workflows]
                after = answer.after_workflow_id
                if after is None:
                    break
            assert found == expected
        with_prefix = [name for name in expected if name.startswith(LONG_PREFIX)]
        assert store.workflow_ids(statuses=wanted, prefix=LONG_PREFIX) == with_prefix

    def test_a_workflow_is_listed_by_the_status_that_it_has_now(self, store: Store) -> None:
        def listed(status: Status) -> list[str]:
            return store.workflow_ids(statuses=frozenset({status}))

        store.save("w", "a")
        store.save("w", "b", status=Status.WAITING)
        assert (listed(Status.RUNNING), listed(Status.WAITING)) == ([], ["w"])
        store.save("w", "b", status=Status.FAILED, is_replace=True)
        assert (listed(Status.WAITING), listed(Status.FAILED)) == ([], ["w"])
        store.delete_ids("w", "b")
        assert (listed(Status.FAILED), listed(Status.RUNNING)) == ([], ["w"])
        store.fork("w", "v", mode=ForkMode.ALL_UP_TO)
        assert listed(Status.RUNNING) == ["v", "w"]
        store.delete_workflow("w")
        assert listed(Status.RUNNING) == ["v"]
        store.save("w", "c", status=Status.COMPLETED)
        assert (listed(Status.RUNNING), listed(Status.COMPLETED)) == (["v"], ["w"])

    def test_a_failed_save_leaves_a_workflow_listed_as_it_was(self, store: Store) -> None:
        store.save("w", "a")
        completed = save("w", "b", status=Status.COMPLETED)
        refused_one = save("w", "c", status=Status.FAILED, expected_head="nothing")
        store.engine.execute([refused_one, completed, refused_one])
        assert store.workflow_ids(statuses=frozenset({Status.COMPLETED})) == ["w"]
        assert store.workflow_ids(statuses=frozenset({Status.RUNNING, Status.FAILED})) == []

    def test_a_workflow_with_records_alone_is_listed_by_no_status(self, store: Store) -> None:
        store.append("w", "a", record("task"))
        assert store.workflow_ids(statuses=frozenset(Status)) == []
        assert store.workflow_ids(has_pending_signals=True) == []

    def test_workflows_with_pending_signals_are_listed_among_all_and_by_status(self, store: Store) -> None:
        for workflow_id in "abc":
            store.save(workflow_id, "a", status=Status.WAITING if workflow_id != "b" else Status.RUNNING)
        for workflow_id in "ab":
            store.send(workflow_id, "s")
        waiting = frozenset({Status.WAITING})
        assert store.workflow_ids(has_pending_signals=True) == ["a", "b"]
        assert store.workflow_ids(has_pending_signals=True, statuses=waiting) == ["a"]
        assert store.workflow_ids(has_pending_signals=False, statuses=waiting) == ["c"]
        assert store.workflow_ids(has_pending_signals=False) == ["c"]
        store.save("a", "b", consumed_signals=("s",), status=Status.WAITING)
        assert store.workflow_ids(has_pending_signals=True) == ["b"]
        assert store.workflow_ids(has_pending_signals=False, statuses=waiting) == ["a", "c"]

    def test_a_page_by_status_examines_only_what_has_it(self, store: Store) -> None:
        for number in range(9):
            store.save(f"a{number}", "a", status=Status.COMPLETED)
        store.save("z", "a")
        answer = store.list_workflows(statuses=frozenset({Status.RUNNING}), rows_examined_max=5)
        assert [each.workflow.workflow_id for each in answer.workflows] == ["z"]
        assert answer.after_workflow_id is None

    def test_workflows_are_filtered_by_labels(self, store: Store) -> None:
        store.save("a", "a", labels={"team": "x", "tier": "1"})
        store.save("b", "a", labels={"team": "x"})
        store.save("c", "a")
        assert store.workflow_ids(labels={"team": "x"}) == ["a", "b"]
        assert store.workflow_ids(labels={"team": "x", "tier": "1"}) == ["a"]
        assert store.workflow_ids(labels={"team": "y"}) == []

    def test_workflows_are_filtered_by_definition(self, store: Store) -> None:
        store.save("a", "a", definition="d")
        store.save("b", "a")
        assert store.workflow_ids(definition="d") == ["a"]
        assert store.workflow_ids(definition="") == ["b"]

    def test_workflows_are_filtered_by_update_time(self, store: Store, clock: ManualClock) -> None:
        start_ms = clock.now_ms
        for workflow_id in "abc":
            store.save(workflow_id, "a")
            clock.advance(10)
        assert store.workflow_ids(updated_from_ms=start_ms + 10) == ["b", "c"]
        assert store.workflow_ids(updated_before_ms=start_ms + 10) == ["a"]
        assert store.workflow_ids(updated_from_ms=start_ms + 10, updated_before_ms=start_ms + 20) == ["b"]

    def test_a_filtered_page_of_workflows_may_be_empty_and_have_a_next_one(self, store: Store) -> None:
        for number in range(9):
            store.save(f"a{number}", "a")
        store.save("z", "a", definition="d")
        first = store.list_workflows(definition="d", rows_examined_max=5)
        assert first.workflows == ()
        assert first.after_workflow_id is not None
        assert store.workflow_ids(definition="d", rows_examined_max=5, after_workflow_id=first.after_workflow_id) == [
            "z"
        ]

    def test_a_page_of_workflows_is_bounded_in_bytes(self, store: Store) -> None:
        for number in range(20):
            store.save(f"{number:02}" + "x" * 1_000, "a")
        answer = store.list_workflows(bytes_max=5_000)
        assert 1 <= len(answer.workflows) <= 6
        assert answer.after_workflow_id == answer.workflows[-1].workflow.workflow_id


class EntryHistoryContract(ContractBase):
    """Reading the values that entries had along a line."""

    def _versions(self, store: Store, *keys: str, checkpoint_id: str | None = None) -> list[tuple[str, str, object]]:
        answer = store.history("w", *keys, checkpoint_id=checkpoint_id)
        assert answer.position is None
        return [
            (found.checkpoint_id, found.entry_key, None if found.value is None else json.loads(found.value.payload))
            for found in answer.versions
        ]

    def test_every_value_is_told_with_the_checkpoint_that_brought_it(self, store: Store) -> None:
        for number, value in enumerate([1, 1, 2, 2, 2, 1]):
            store.save("w", str(number), {"x": value, "y": number})
        assert self._versions(store, "x") == [("5", "x", 1), ("2", "x", 2), ("0", "x", 1)]

    def test_increments_tell_the_same(self, store: Store) -> None:
        store.save("w", "0", {"x": 0, "y": 0})
        store.save("w", "1", {"y": 1}, base_checkpoint_id="0")
        store.save("w", "2", {"x": 2}, base_checkpoint_id="1")
        assert self._versions(store, "x") == [("2", "x", 2), ("0", "x", 0)]

    def test_what_another_line_has_stored_alike_is_no_change(self, store: Store) -> None:
        store.save("w", "0", {"x": 1})
        store.save("w", "beside", {"x": 1}, parent_id="")
        store.save("w", "1", {"y": 1}, base_checkpoint_id="beside", parent_id="0")
        assert self._versions(store, "x") == [("0", "x", 1)]

    def test_a_removed_entry_is_told_without_value(self, store: Store) -> None:
        store.save("w", "0", {"x": 0, "y": 0})
        store.save("w", "1", base_checkpoint_id="0", removed_keys=("x",))
        store.save("w", "2", {"x": 2}, base_checkpoint_id="1")
        assert self._versions(store, "x") == [("2", "x", 2), ("1", "x", None), ("0", "x", 0)]

    def test_several_entries_are_followed_at_once(self, store: Store) -> None:
        store.save("w", "0", {"x": 0})
        store.save("w", "1", {"y": 1}, base_checkpoint_id="0")
        assert self._versions(store, "x", "y") == [("1", "y", 1), ("0", "x", 0)]

    def test_an_entry_that_never_was_has_no_versions(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        assert self._versions(store, "nowhere") == []

    def test_history_starts_at_the_checkpoint_named(self, store: Store) -> None:
        for number in range(4):
            store.save("w", str(number), {"x": number})
        assert self._versions(store, "x", checkpoint_id="1") == [("1", "x", 1), ("0", "x", 0)]

    def test_history_follows_parents_and_not_sequences(self, store: Store) -> None:
        store.save("w", "a", {"x": "a"})
        store.save("w", "b", {"x": "b"})
        store.save("w", "c", {"x": "c"}, parent_id="a")
        assert self._versions(store, "x") == [("c", "x", "c"), ("a", "x", "a")]

    def test_history_of_a_scope_stays_in_it(self, store: Store) -> None:
        store.save("w", "a", {"x": 1})
        store.save("w", "b", {"x": 2}, scope="s")
        answer = store.history("w", "x", scope="s")
        assert [found.checkpoint_id for found in answer.versions] == ["b"]

    def test_history_that_ends_at_a_pruned_parent_says_so(self, store: Store) -> None:
        for number in range(3):
            store.save("w", str(number), {"x": number})
        assert not store.history("w", "x").ancestors_pruned
        store.delete_ids("w", "0")
        answer = store.history("w", "x")
        assert [found.checkpoint_id for found in answer.versions] == ["2", "1"]
        assert answer.ancestors_pruned

    def test_pages_of_a_history_follow_each_other(self, store: Store) -> None:
        for number in range(7):
            store.save("w", str(number), {"x": number, "y": number // 3})
        found: list[EntryVersion] = []
        position: int | None = None
        for _ in range(PAGES_MAX):
            answer = store.history("w", "x", "y", page_size=2, position=position)
            found += answer.versions
            position = answer.position
            if position is None:
                break
        assert [(version.entry_key, version.sequence) for version in found] == [
            ("x", 7), ("y", 7), ("x", 6), ("x", 5), ("x", 4), ("y", 4), ("x", 3), ("x", 2), ("x", 1), ("y", 1)
        ]  # fmt: skip

    def test_a_page_of_a_history_is_bounded_in_rows(self, store: Store) -> None:
        store.save("w", "0", {"x": 1})
        store.save_line("w", *(str(number) for number in range(1, 9)))
        answer = store.history("w", "x", rows_examined_max=5)
        assert answer.position is not None
        rest = store.history("w", "x", position=answer.position)
        assert [(found.checkpoint_id, found.value) for found in (*answer.versions, *rest.versions)] == [
            ("1", None),
            ("0", json_value(1)),
        ]

    def test_a_page_of_a_history_is_bounded_in_bytes(self, store: Store) -> None:
        for number in range(6):
            store.save("w", str(number), {"x": data_value(bytes([number]) * 1_000)})
        answer = store.history("w", "x", bytes_max=2_500)
        assert 1 <= len(answer.versions) < 4
        assert answer.position is not None

    def test_a_page_of_a_history_passes_its_bytes_only_with_what_one_checkpoint_brought(self, store: Store) -> None:
        for number in range(4):
            store.save("w", str(number), {key: data_value(bytes([number]) * 1_000) for key in "xyz"})
        pages: list[list[tuple[int, str]]] = []
        position: int | None = None
        for _ in range(PAGES_MAX):
            answer = store.history("w", "x", "y", "z", bytes_max=4_000, position=position)
            pages.append([(version.sequence, version.entry_key) for version in answer.versions])
            position = answer.position
            if position is None:
                break
        assert pages == [[(sequence, key) for key in "xyz"] for sequence in (4, 3, 2, 1)]

    def test_a_long_history_is_told_whole(self, store: Store) -> None:
        rows = 1_500
        store.engine.execute([save("w", str(number), {"x": number // 500}) for number in range(rows)])
        assert self._versions(store, "x") == [("1000", "x", 2), ("500", "x", 1), ("0", "x", 0)]

    def test_an_unknown_workflow_has_no_history(self, store: Store) -> None:
        with refused("WORKFLOW_NOT_FOUND"):
            store.history("nowhere", "x")

    def test_an_unknown_checkpoint_has_no_history(self, store: Store) -> None:
        store.save("w", "a")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.history("w", "x", checkpoint_id="nowhere")
        with refused("CHECKPOINT_NOT_FOUND"):
            store.history("w", "x", scope="s")

    def test_a_page_of_a_history_is_bounded_in_bytes_over_more_rows_than_a_slice_too(self, store: Store) -> None:
        store.save("w", "old", {"x": "o" * 3_000})
        store.engine.execute([save("w", str(number), base_checkpoint_id="old") for number in range(1_000)])
        store.save("w", "new", {"x": "n" * 3_000})
        page = store.history("w", "x", bytes_max=5_000)
        assert [each.checkpoint_id for each in page.versions] == ["new"]
        assert page.position is not None

    def test_a_history_whose_next_checkpoint_was_deleted_between_pages_ends_there(self, store: Store) -> None:
        store.save_line("w", *"abc")
        first = store.history("w", "at", page_size=1)
        store.delete_ids("w", "b")
        rest = store.history("w", "at", position=first.position, incarnation=first.workflow.incarnation)
        assert (rest.versions, rest.position, rest.ancestors_pruned) == ((), None, True)

    def test_a_page_of_a_deleted_history_has_expired(self, store: Store) -> None:
        store.save_line("w", *"abc")
        first = store.history("w", "at", page_size=1)
        store.delete_workflow("w")
        store.save_line("w", *"def")
        with refused("PAGE_EXPIRED"):
            store.history("w", "at", position=first.position, incarnation=first.workflow.incarnation)


class GetWorkflowContract(ContractBase):
    """Reading what is known of one workflow."""

    def test_an_unknown_workflow_cannot_be_shown(self, store: Store) -> None:
        with refused("WORKFLOW_NOT_FOUND"):
            store.get_workflow("nowhere")

    def test_stored_bytes_return_to_nothing_with_the_last_checkpoint(self, store: Store) -> None:
        store.save_line("w", "a", "b")
        store.save("w", "b", {"x": "y" * 100}, is_replace=True)
        assert store.get_workflow("w").stored_bytes > 0
        store.delete_ids("w", "a", "b")
        assert store.get_workflow("w").stored_bytes == 0


class ProbeContract(ContractBase):
    """Seeing whether the storage answers."""

    def test_a_probe_is_answered(self, store: Store) -> None:
        store.save_line("w", "a")
        assert store.engine.probe() == ProbeAnswer()


class ReadingContract(
    LoadContract, ListContract, ListWorkflowsContract, EntryHistoryContract, GetWorkflowContract, ProbeContract
):
    """All of reading."""
