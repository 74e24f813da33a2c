"""The fault matrix: what may go wrong, what is promised then, and the tests that do it for real.

Rows keep their numbers for ever. A row is tried in every run of `make faults`, unless `tried` says when else; a row
without a test says what a bench has `measured`, or in `open` what is missing.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Tried = Literal["always", "soak", "gpu"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One fault. `tests` are named `folder/file::test` under `tests/`; `measured` is what a bench has said of it."""

    number: int
    fault: str
    promise: str
    tests: tuple[str, ...] = ()
    tried: Tried = "always"
    open: str = ""
    measured: str = ""


GUARD, BROKEN, RUNS = "system/test_guard.py", "system/test_guard_broken.py", "system/test_runs.py"
CRASH, CLAIM, WAITS = "system/test_crash.py", "system/test_claim_race.py", "system/test_waiting_reasons.py"
CANCEL, POLL, HARD = (
    "service/test_client_cancellation.py",
    "service/test_client_polling.py",
    "service/test_client_hardening.py",
)
DAEMON, WIRE, CARDS = "service/test_daemon.py", "service/test_wire.py", "service/test_cardwatch.py"
SYSTEMD, PROBES = "system/test_systemd.py", "system/test_systemd_probes.py"
JOURNAL, LEDGER, LUAGUARD = "unit/test_journal.py", "lua/test_ledger_directed.py", "lua/test_guard_directed.py"
NVML, EMBEDDED, LIMITS = "hardware/test_nvml_library.py", "service/test_embedded.py", "service/test_web_limits.py"
VERSIONS, OLDER = "faults/test_versions.py", "faults/test_older.py"
OLDER_STATE, OLDER_COMMANDS = "faults/test_older_state.py", "faults/test_older_commands.py"
LINES, CUT_GUARDS = "faults/test_partitions.py", "faults/test_partitioned_guards.py"
CUT_PRIMARY, CLUSTER = "faults/test_partitioned_primary.py", "system/test_cluster.py"
OF_VERSIONS = (
    "test_program_and_guard_pass_over_words_of_tomorrow",
    "test_the_guard_says_which_words_it_knows",
    "test_a_wish_with_unknown_words_is_refused_by_name",
    "test_commands_read_the_answers_of_a_later_daemon",
    "test_events_that_nobody_knows_yet_are_passed_over",
    "test_the_record_of_a_later_guard_is_read",
    "test_a_revision_with_settings_of_tomorrow_changes_nothing",
)

ROWS: tuple[Row, ...] = (
    Row(
        number=1,
        fault="holder killed (SIGKILL)",
        promise="the next one begins within 1 s; never two",
        tests=(f"{GUARD}::test_the_next_begins_at_once_when_a_holder_is_killed",),
    ),
    Row(
        number=2,
        fault="waiter killed",
        promise="passed over at once, order kept",
        tests=(f"{GUARD}::test_a_waiter_that_is_killed_is_passed_over_at_once",),
    ),
    Row(
        number=3,
        fault="holder stopped (SIGSTOP) for longer than its session",
        promise="ended before the next one begins",
        tests=(f"{GUARD}::test_a_stopped_holder_whose_lease_expired_is_killed_before_the_next_begins",),
    ),
    Row(
        number=4,
        fault="holder stopped between its grant and its body",
        promise="never enters beside the next one",
        tests=(
            f"{CLAIM}::test_a_winner_that_is_away_never_enters_beside_the_next",
            f"{BROKEN}::test_a_winner_that_was_stopped_beyond_its_claim_is_neither_killed_nor_forgotten",
        ),
    ),
    Row(
        number=5,
        fault="holder stopped for less than its session",
        promise="loses nothing",
        tests=("faults/test_processes.py::test_a_short_stop_costs_nothing",),
    ),
    Row(
        number=6,
        fault="holder blocks its event loop",
        promise="keeps its lease: the keepalive has a thread of its own",
        tests=(f"{CRASH}::test_a_body_that_blocks_its_loop_keeps_its_lease",),
    ),
    Row(
        number=7,
        fault="parent of a fork dies, its child goes on",
        promise="the child is of the run: ended before the next one begins",
        tests=(f"{GUARD}::test_a_child_that_goes_on_alone_is_ended_before_the_next_begins",),
    ),
    Row(
        number=8,
        fault="double fork and setsid",
        promise="found on the card by its lease",
        tests=(f"{RUNS}::test_a_double_fork_is_found_on_the_card_by_its_lease",),
    ),
    Row(
        number=9,
        fault="holder calls exec",
        promise="the same process: it holds as long as it lives",
        tests=("faults/test_processes.py::test_a_program_that_becomes_another_still_holds",),
    ),
    Row(
        number=10,
        fault="cancelled at any await",
        promise="no orphan, no second place",
        tests=(f"{CANCEL}::test_cancelling_at_any_await_leaves_nothing",),
    ),
    Row(
        number=11,
        fault="error, signal or closed loop in the body",
        promise="released once",
        tests=(
            f"{CANCEL}::test_a_body_error_comes_out_as_it_is_and_releases",
            f"{CANCEL}::test_a_closed_loop_leaves_no_ticket",
            f"{HARD}::test_a_signal_handler_that_raises_leaves_no_lock",
        ),
    ),
    Row(
        number=12,
        fault="a time limit around the lock ends in the moment of the grant",
        promise="granted and released, or never granted",
        tests=(f"{CANCEL}::test_an_outer_scope_cancels_a_wait_within_its_time",),
    ),
    Row(
        number=13,
        fault="client cut off from the store, both ways",
        promise="unguarded: its body is cancelled before another gets the gpu; guarded: it goes on",
        tests=(
            f"{POLL}::test_a_holder_cut_off_from_redis_stops_when_its_belief_is_over",
            f"{GUARD}::test_a_store_that_is_away_for_long_costs_no_holder_its_lease",
            f"{LINES}::test_whoever_is_cut_off_is_out_before_another_is_in",
            f"{CUT_GUARDS}::test_a_guarded_holder_that_is_cut_off_goes_on",
        ),
    ),
    Row(
        number=14,
        fault="replies lost, the server has applied",
        promise="one place, one token",
        tests=(
            f"{CANCEL}::test_each_reply_lost_once_takes_one_place_and_one_token",
            f"{LINES}::test_lost_replies_take_one_place_and_one_token",
        ),
    ),
    Row(
        number=15,
        fault="requests lost",
        promise="as 14; a turn that cannot be taken goes to the next one, and is not lost",
        tests=(
            "faults/test_lines.py::test_requests_that_never_arrive_take_one_place",
            f"{LINES}::test_lost_requests_take_nothing_and_keep_nothing_from_others",
        ),
    ),
    Row(
        number=16,
        fault="connection reset in the middle of a reply, or half open",
        promise="reconnects; no reply goes to another command",
        tests=(
            f"{WIRE}::test_a_broken_connection_fails_what_is_under_way_and_the_next_command_opens_another",
            "faults/test_lines.py::test_a_reset_in_the_middle_of_replies_crosses_none",
            f"{LINES}::test_resets_and_half_open_connections_cross_no_replies",
        ),
    ),
    Row(
        number=17,
        fault="bytes that trickle in; a line that loses 30 % each way",
        promise="slower, never wrong; belief is not stretched",
        tests=(
            f"{WIRE}::test_a_reply_that_trickles_in_is_late_too",
            f"{HARD}::test_replies_that_trickle_in_do_not_stretch_belief",
            f"{LINES}::test_a_line_that_loses_a_third_is_slower_and_never_wrong",
        ),
    ),
    Row(
        number=18,
        fault="store killed, its file kept",
        promise="nobody loses a lease",
        tests=(
            f"{WAITS}::test_a_killed_store_comes_back_to_living_holders",
            f"{EMBEDDED}::test_a_killed_store_comes_back_with_every_answered_write",
        ),
    ),
    Row(
        number=19,
        fault="store restarted empty",
        promise="holders assert themselves; tokens grow",
        tests=(
            f"{GUARD}::test_the_store_is_emptied_while_the_daemon_is_down",
            f"{LUAGUARD}::test_tokens_grow_past_all_that_the_guard_has_let_in",
        ),
    ),
    Row(
        number=20,
        fault="store lost its last second",
        promise="no holder loses its lease, nobody meets it",
        tests=(f"{GUARD}::test_a_store_that_was_rolled_back_costs_no_holder_its_lease",),
    ),
    Row(
        number=21,
        fault="append-only file torn",
        promise="loaded, and not taken for complete",
        tests=(f"{EMBEDDED}::test_a_torn_file_is_loaded_but_is_not_complete",),
    ),
    Row(
        number=22,
        fault="store stopped for three session times",
        promise="no lease ends by the stall",
        tests=("faults/test_store.py::test_a_store_that_stands_still_ends_no_lease",),
    ),
    Row(
        number=23,
        fault="store busy with a foreign script",
        promise="own deadlines; goes on within 2 s; nothing is killed",
        tests=("faults/test_store.py::test_a_busy_store_is_waited_out",),
    ),
    Row(
        number=24,
        fault="store blocked by a script that cannot be killed",
        promise="as 18 after the hand that kills it and starts it again",
        tests=("faults/test_hand.py::test_a_store_that_only_a_kill_helps_comes_back_with_its_file",),
    ),
    Row(
        number=25,
        fault="functions flushed between calls",
        promise="loaded again; nobody sees it",
        tests=("faults/test_store.py::test_functions_that_vanish_are_loaded_again",),
    ),
    Row(
        number=26,
        fault="another version's functions in the store",
        promise="replaced by the true one; versions live side by side",
        tests=("faults/test_store.py::test_a_foreign_library_of_our_name_is_replaced",),
    ),
    Row(
        number=27,
        fault="FLUSHALL",
        promise="holders keep their gpus; grants wait as long as design says",
        tests=(
            f"{GUARD}::test_holders_keep_their_card_through_an_emptied_store",
            f"{WAITS}::test_an_emptied_store_lets_nobody_in_beside_a_living_holder",
        ),
    ),
    Row(
        number=28,
        fault="a key of ours deleted, or of a wrong type",
        promise="said; holders go on, never two; the pool comes back when the key is deleted",
        tests=(
            "faults/test_store.py::test_a_spoilt_key_is_said_and_never_lets_two_in",
            "lua/test_stale_books.py::test_leases_stay_on_their_gpus_when_the_books_are_deleted",
            "lua/test_stale_books.py::test_a_slot_is_not_given_twice_when_the_key_of_all_slots_was_deleted",
        ),
    ),
    Row(
        number=29,
        fault="store out of memory",
        promise="nothing is refused: requests, keepalives and releases may pass the limit; no half write",
        tests=("faults/test_store.py::test_a_full_store_still_takes_releases",),
    ),
    Row(
        number=30,
        fault="store with an eviction policy",
        promise="refused at once",
        tests=("service/test_client_forms.py::test_an_evicting_server_is_refused",),
    ),
    Row(
        number=31,
        fault="store cannot write its file",
        promise="not taken for complete after its death",
        tests=(f"{EMBEDDED}::test_a_store_that_could_not_write_is_not_complete_after_its_death",),
    ),
    Row(
        number=32,
        fault="too many clients, wrong or changed password, missing right",
        promise="said; goes on when it is right again",
        tests=(
            f"{WIRE}::test_a_wrong_password_is_an_error_of_the_configuration",
            f"{WIRE}::test_a_command_that_an_acl_forbids_says_so",
            "faults/test_store.py::test_a_store_without_a_free_connection_is_waited_for",
        ),
    ),
    Row(
        number=33,
        fault="failover that loses an acknowledged grant",
        promise="the holder asserts itself; nobody meets it",
        tests=(
            "system/test_failover.py::test_a_failover_that_forgets_a_lease_lets_nobody_meet_its_holder",
            f"{CLUSTER}::test_a_killed_master_costs_no_lease_and_its_replica_hands_on",
            f"{CLUSTER}::test_a_master_that_stands_still_is_left_for_its_heir",
        ),
    ),
    Row(
        number=34,
        fault="the old primary, alone with some clients, comes back with writes of its own",
        promise="what it granted puts nobody beside another and keeps nobody from what is free; tokens grow",
        tests=(
            "faults/test_hand.py::test_what_an_old_primary_granted_lets_nobody_in",
            f"{CUT_PRIMARY}::test_who_is_left_alone_with_the_old_primary_meets_nobody",
            f"{CUT_PRIMARY}::test_a_primary_that_needs_its_replica_keeps_no_holder_when_it_is_cut_off",
        ),
    ),
    Row(
        number=35,
        fault="READONLY, LOADING, MOVED and their like",
        promise="each is waited for or followed",
        tests=(
            "service/test_many_servers.py::test_locks_are_handed_on_in_a_cluster_also_when_the_doorbell_was_cut",
            f"{CLUSTER}::test_a_pool_that_is_moved_to_another_master_is_followed",
            f"{CLUSTER}::test_an_unguarded_pool_loses_nothing_when_it_is_moved",
            f"{CLUSTER}::test_a_pool_without_a_server_waits_and_says_why",
        ),
    ),
    Row(
        number=36,
        fault="a doorbell lost",
        promise="made up for by the next keepalive",
        tests=(f"{POLL}::test_a_broken_subscription_is_polled_around_and_comes_back",),
    ),
    Row(
        number=37,
        fault="a subscriber that does not read is cut off",
        promise="subscribes again, and asks",
        tests=("faults/test_lines.py::test_a_subscriber_that_was_cut_off_asks_again",),
    ),
    Row(
        number=38,
        fault="a release between subscribing and asking",
        promise="no lost wake-up",
        tests=("system/test_exclusion.py::test_nobody_waits_while_a_gpu_is_free",),
    ),
    Row(
        number=39,
        fault="forged, doubled and shuffled doorbells",
        promise="a hint only: the ledger decides",
        tests=("faults/test_lines.py::test_forged_doorbells_let_nobody_in",),
    ),
    Row(
        number=40,
        fault="a storm of messages",
        promise="keepalives are in time",
        tests=("faults/test_lines.py::test_a_storm_of_messages_costs_nobody_a_lease",),
    ),
    Row(
        number=41,
        fault="daemon killed",
        promise="knows all again; the next grant 2 s later at most",
        tests=(
            f"{SYSTEMD}::test_a_holder_that_dies_while_the_daemon_is_away_is_followed_and_a_stranger_with_its_pid_is_left_alone",
            f"{GUARD}::test_a_daemon_that_was_killed_knows_whom_it_has_let_in",
        ),
    ),
    Row(
        number=42,
        fault="daemon hangs",
        promise="started again by its watchdog",
        tests=(f"{SYSTEMD}::test_a_hung_daemon_is_started_again",),
    ),
    Row(
        number=43,
        fault="one service of the daemon stands still",
        promise="no word to the watchdog any more",
        tests=(f"{PROBES}::test_a_service_that_stops_going_round_costs_the_daemon_its_life",),
    ),
    Row(
        number=44,
        fault="two daemons",
        promise="the second is refused",
        tests=(
            f"{GUARD}::test_a_second_daemon_for_the_same_pool_refuses",
            f"{DAEMON}::test_a_second_daemon_in_the_same_folder_is_refused",
        ),
    ),
    Row(
        number=45,
        fault="two drivers of a rollout",
        promise="one of them counts",
        tests=(
            "system/test_rollout.py::test_a_good_candidate_reaches_all_though_the_driving_daemon_is_killed_midway",
            "system/test_configuring_fleet.py::test_no_change_is_lost_when_all_change_at_once",
        ),
    ),
    Row(
        number=46,
        fault="client and daemon of different versions",
        promise="one line for programs of both; unknown words are passed over, or refused by name",
        tests=(
            *(f"{VERSIONS}::{test}" for test in OF_VERSIONS),
            f"{OLDER}::test_programs_of_both_versions_stand_in_one_line",
            f"{OLDER}::test_versions_share_a_pool_without_a_daemon",
            f"{OLDER_COMMANDS}::test_older_commands_under_this_daemon",
            f"{OLDER_COMMANDS}::test_these_commands_under_an_older_daemon",
            f"{OLDER_STATE}::test_daemons_of_both_versions_follow_one_configuration",
        ),
    ),
    Row(
        number=47,
        fault="daemons replaced by another version under load, forth and back",
        promise="nobody loses a lease; what one has written the next one reads",
        tests=(
            "system/test_run_survives.py::test_a_run_and_its_waiter_survive_a_killed_daemon",
            f"{OLDER}::test_daemons_of_both_versions_replace_each_other_under_load",
            f"{OLDER_STATE}::test_a_daemon_goes_on_where_one_of_the_other_version_has_stopped",
            f"{OLDER_STATE}::test_leases_that_an_earlier_version_has_left_out_are_kept",
            f"{OLDER_STATE}::test_a_file_that_cannot_be_read_names_not_all",
        ),
    ),
    Row(
        number=48,
        fault="the store's clock jumps by an hour",
        promise="no session ends, no dead one is kept",
        tests=(
            f"{LEDGER}::test_a_jump_of_the_servers_clock_ends_no_session_and_keeps_no_dead_one",
            "faults/test_clocks.py::test_a_jump_of_the_stores_clock_costs_no_lease",
        ),
    ),
    Row(
        number=49,
        fault="the host's clock jumps for client and daemon",
        promise="nothing happens",
        tests=("faults/test_clocks.py::test_a_jump_of_the_hosts_clock_costs_no_lease",),
    ),
    Row(
        number=50,
        fault="clocks that run at different rates (10 %)",
        promise="the margin holds",
        tests=("faults/test_simulation.py::test_clocks_of_different_rates_keep_their_distance",),
    ),
    Row(
        number=51,
        fault="host suspended",
        promise="a short sleep costs nothing; a long one may cost a lease, which is said; never two",
        tests=("faults/test_hand.py::test_a_suspended_host_wakes_without_two_on_a_card",),
    ),
    Row(
        number=52,
        fault="a pid is used again",
        promise="the stranger is left alone",
        tests=(
            f"{RUNS}::test_a_stranger_that_got_the_pid_is_never_signalled",
            f"{GUARD}::test_a_reused_pid_is_not_signalled",
        ),
    ),
    Row(
        number=53,
        fault="holder is a zombie",
        promise="dead",
        tests=("system/test_runs.py::test_a_zombie_is_dead_though_nobody_has_waited_for_it",),
    ),
    Row(
        number=54,
        fault="a process that cannot die",
        promise="its gpu is quarantined, and said",
        tests=(f"{RUNS}::test_one_that_cannot_die_is_named",),
    ),
    Row(
        number=55,
        fault="no right to kill",
        promise="quarantined with the reason",
        tests=(f"{RUNS}::test_a_run_of_another_user_without_the_right_to_kill_is_said",),
    ),
    Row(
        number=56,
        fault="driver library missing, too old, or changed underneath",
        promise="said; found again by itself",
        tests=(
            f"{NVML}::test_a_host_without_the_library_says_so",
            f"{NVML}::test_a_library_that_was_upgraded_under_the_daemon_is_loaded_anew",
        ),
    ),
    Row(
        number=57,
        fault="card lost, XID, reset required",
        promise="out of the pool, its holder told, back by itself",
        tests=(
            f"{CARDS}::test_a_card_that_is_lost_tells_its_holder_and_the_next_gets_another",
            f"{CARDS}::test_an_xid_that_breaks_the_card_takes_it_out_and_one_of_a_program_does_not",
        ),
    ),
    Row(
        number=58,
        fault="a call of the driver hangs",
        promise="loop and neighbours go on",
        tests=(
            f"{NVML}::test_a_card_that_hangs_holds_up_neither_the_others_nor_the_loop_nor_the_end",
            f"{CARDS}::test_a_card_that_hangs_keeps_its_holder_and_takes_nobody_new",
        ),
    ),
    Row(
        number=59,
        fault="the driver tells processes late, or not at all",
        promise="an unseen process is not an empty card",
        tests=(f"{NVML}::test_a_driver_that_does_not_tell_processes_is_not_an_empty_card",),
    ),
    Row(
        number=60,
        fault="cards change their order, MIG",
        promise="followed by UUID",
        tests=(f"{NVML}::test_cards_are_followed_by_uuid_when_their_order_changes",),
    ),
    Row(
        number=61,
        fault="disk full",
        promise="nobody new is let in; releases work",
        tests=(f"{JOURNAL}::test_a_full_disk_lets_nobody_new_in",),
    ),
    Row(
        number=62,
        fault="the guard's record torn or damaged",
        promise="at most its last line is lost; damage is said",
        tests=(
            f"{JOURNAL}::test_a_record_cut_at_any_byte_loses_at_most_its_last_line",
            f"{JOURNAL}::test_damage_in_the_middle_is_said_and_kept_aside",
        ),
    ),
    Row(
        number=63,
        fault="configuration broken while it runs",
        promise="the old one stays",
        tests=("service/test_configuring.py::test_a_changed_file_is_a_revision_and_a_broken_one_changes_nothing",),
    ),
    Row(
        number=64,
        fault="abuse of the API",
        promise="limits; the lock's own way stays free",
        tests=(f"{LIMITS}::test_who_is_slow_is_cut_off", f"{LIMITS}::test_a_head_without_end_is_not_stored"),
    ),
    Row(
        number=65,
        fault="10,000 waiters on one gpu",
        promise="flat cost of a hand-off",
        tried="soak",
        measured="298 µs of the server's CPU among 10, 311 among 10,000 (`python -m bench scale`)",
    ),
    Row(
        number=66,
        fault="1,000 pools of 8 gpus",
        promise="flat cost",
        tried="soak",
        measured="a lease taken and given back 153 µs among 30 pools, 219 among 1,000 (`python -m bench scale`)",
    ),
    Row(
        number=67,
        fault="50,000 requests and cancels",
        promise="no key is left",
        tried="soak",
        measured="196 µs each in the first tenth, 179 in the last; no key was left (`python -m bench scale`)",
    ),
    Row(
        number=68,
        fault="many of higher priority",
        promise="waiting makes up for priority",
        tests=(f"{LEDGER}::test_priority_goes_first_and_waiting_makes_up_for_it",),
    ),
    Row(
        number=69,
        fault="client without descriptors",
        promise="an error, and no half lock",
        tests=("faults/test_processes.py::test_a_client_without_descriptors_leaves_no_half_lock",),
    ),
    Row(
        number=70,
        fault="holder changes its user",
        promise="still followed",
        tests=("faults/test_processes.py::test_a_holder_that_changes_its_user_is_still_followed",),
    ),
    Row(
        number=71,
        fault="daemon cut off from its store, alone or with its holders",
        promise="holders go on, nobody begins beside them; limits that passed act when the line is back",
        tests=(
            "faults/test_lines.py::test_a_daemon_that_is_cut_off_lets_nobody_new_in",
            f"{CUT_GUARDS}::test_a_guard_that_is_cut_off_is_asked_and_limits_act_when_it_is_back",
            f"{CUT_GUARDS}::test_nobody_begins_beside_a_holder_whose_guard_is_cut_off_with_it",
        ),
    ),
    Row(
        number=72,
        fault="all of it at random",
        promise="no rule is broken",
        tests=("faults/test_random.py::test_a_random_evil_hour_breaks_no_rule",),
    ),
)
