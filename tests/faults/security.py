"""What an attacker may try, what keeps it out, and the tests that try it.

Rows keep their numbers for ever. `python -m tests.faults.security --write` puts the table into docs/security.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import msgspec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- attacks: begin -->", "<!-- attacks: end -->"


class Attack(msgspec.Struct, frozen=True, kw_only=True):
    """One attack. `tests` are named `folder/file::test`; `why_not` says what is not promised."""

    number: int
    attack: str
    kept_out_by: str
    tests: tuple[str, ...] = ()
    why_not: str = ""


MATRIX, WEB, LIMITS = "service/test_web_matrix.py", "service/test_web.py", "service/test_web_limits.py"
GUARD, RUNS, ACL, HERE = (
    "system/test_guard.py",
    "system/test_runs.py",
    "integration/test_redis_acl.py",
    "faults/test_security.py",
)
UNITS, FUZZ, CHANNELS = "system/test_systemd_units.py", "faults/test_fuzz.py", "service/test_alert_channels.py"
CONFIG, FOLDERS, MANNERS = "service/test_config_routes.py", "unit/test_configuration.py", "faults/test_manners.py"

ATTACKS: tuple[Attack, ...] = (
    Attack(
        number=1,
        attack="one user ends or changes another's lease",
        kept_out_by="owner by peer uid; operators are root, the daemon's user and who has the token",
        tests=(
            f"{MATRIX}::test_another_users_lease_is_left_alone",
            f"{MATRIX}::test_what_is_everybodys_another_user_may_not_change",
            f"{MATRIX}::test_every_route_for_owners_is_tried_here",
            f"{HERE}::test_nobody_joins_the_lease_of_another_user",
            "system/test_guard_lies.py::test_nobody_ends_a_run_or_takes_it_from_the_fence",
        ),
    ),
    Attack(
        number=2,
        attack="a pid or uid in a message, to have a stranger killed",
        kept_out_by="identity from SO_PEERPIDFD or SO_PEERCRED only; a lease is held for own processes only",
        tests=(
            f"{MATRIX}::test_another_users_lease_is_left_alone",
            f"{GUARD}::test_lies_on_the_socket_change_nothing",
            f"{HERE}::test_what_a_message_says_of_its_sender_counts_for_nothing",
            "system/test_guard_lies.py::test_nobody_ends_a_run_or_takes_it_from_the_fence",
        ),
    ),
    Attack(
        number=3,
        attack="a pid that is used again",
        kept_out_by="pidfd, and pid with start time",
        tests=(
            f"{RUNS}::test_a_stranger_that_got_the_pid_is_never_signalled",
            f"{GUARD}::test_a_reused_pid_is_not_signalled",
        ),
    ),
    Attack(
        number=4,
        attack="a user namespace hides who asks",
        kept_out_by="the overflow uid is nobody and may write nothing; the units have no PrivateUsers",
        tests=(f"{HERE}::test_a_user_whom_the_kernel_cannot_name_changes_nothing",),
    ),
    Attack(
        number=5,
        attack="a peer of another pid namespace (pid 0)",
        kept_out_by="followed by its pidfd, else refused with the cure",
        tests=(
            f"{RUNS}::test_a_peer_outside_the_daemons_namespace_is_refused_with_the_cure",
            f"{GUARD}::test_a_holder_in_its_own_pid_namespace_is_known_and_its_death_is_heard",
        ),
    ),
    Attack(
        number=6,
        attack="DNS rebinding",
        kept_out_by="exact Host names with the port, on every route",
        tests=(f"{MATRIX}::test_no_page_reaches_any_route", f"{WEB}::test_an_unknown_host_is_refused_on_every_route"),
    ),
    Attack(
        number=7,
        attack="a page of another site posts (CSRF, 0.0.0.0)",
        kept_out_by="the bearer header, Origin and Sec-Fetch-Site; no cookies, no CORS",
        tests=(
            f"{MATRIX}::test_no_page_reaches_any_route",
            f"{MATRIX}::test_no_write_over_tcp_without_the_token",
            f"{CONFIG}::test_a_form_post_changes_it_with_the_bearer_header",
        ),
        why_not="The documented POST routes take any Content-Type: header and Origin protect them.",
    ),
    Attack(
        number=8,
        attack="the token stolen or guessed",
        kept_out_by="256 random bits, compared in constant time, in a file of mode 0600; never in a URL",
        tests=(
            f"{LIMITS}::test_a_token_that_others_know_is_refused",
            f"{LIMITS}::test_a_token_is_never_read_through_a_link",
            f"{MATRIX}::test_no_secret_is_said_anywhere",
            f"{MATRIX}::test_no_write_over_tcp_without_the_token",
        ),
        why_not="It is not stored hashed, for `gpulockd token` prints it, and wrong ones are not slowed down: nobody "
        "guesses 256 bits. Each is in the audit.",
    ),
    Attack(
        number=9,
        attack="smuggled requests, huge heads and bodies, slow ones",
        kept_out_by="limits of size, time and connections, before anything is stored",
        tests=(
            f"{LIMITS}::test_who_is_slow_is_cut_off",
            f"{LIMITS}::test_a_head_without_end_is_not_stored",
            f"{LIMITS}::test_what_is_no_http_is_a_problem_too",
            f"{LIMITS}::test_some_connections_are_kept_for_the_operator",
            f"{FUZZ}::test_no_request_is_an_error_of_the_server",
        ),
    ),
    Attack(
        number=10,
        attack="readers of a stream that never read",
        kept_out_by="one memory for all readers; each has a place in it and no queue of its own",
        tests=(f"{HERE}::test_who_does_not_read_its_stream_holds_up_nobody",),
    ),
    Attack(
        number=11,
        attack="one user's crowd",
        kept_out_by="half of the guard's connections, 300 of the API's, 256 waiting requests a user",
        tests=(
            "system/test_guard_crowd.py::test_a_thousand_connections_of_one_user_keep_no_other_out",
            f"{LIMITS}::test_some_connections_are_kept_for_the_operator",
            "unit/test_lies.py::test_lies_of_one_user_are_bounded_and_leave_nothing",
        ),
        why_not="Who speaks to the store itself has no limit: give credentials of the store to one team only.",
    ),
    Attack(
        number=12,
        attack="a lease held for ever",
        kept_out_by="limits on the daemon's own clock; heartbeats do not move the hard one",
        tests=(
            "system/test_limits.py::test_a_program_that_overstays_loses_its_gpu_and_the_next_one_gets_it",
            f"{GUARD}::test_a_holder_that_heeds_nothing_is_killed_and_one_that_leaves_is_not",
        ),
    ),
    Attack(
        number=13,
        attack="the highest priority, always",
        kept_out_by="priorities from -100 to 100; waiting makes up for them",
        tests=("lua/test_ledger_directed.py::test_priority_goes_first_and_waiting_makes_up_for_it",),
        why_not="There is no ceiling by user.",
    ),
    Attack(
        number=14,
        attack="names that reach other keys of the store",
        kept_out_by="checked where they come in; one function makes keys",
        tests=(f"{HERE}::test_no_name_reaches_another_key",),
    ),
    Attack(
        number=15,
        attack="Lua in a name or an argument",
        kept_out_by="the Lua is files of the package; data goes by ARGV",
        tests=(f"{MANNERS}::test_lua_is_loaded_by_one_module_from_files_only",),
    ),
    Attack(
        number=16,
        attack="breaking out of the store's Lua",
        kept_out_by="clients have no right to load or run code of their own",
        tests=(f"{ACL}::test_a_client_can_do_nothing_else",),
        why_not="Server versions with known holes are not told of; the private Valkey is as new as its package.",
    ),
    Attack(
        number=17,
        attack="a store that anybody on the network may read",
        kept_out_by="the private store has no port; rediss:// checks the certificate and the name",
        tests=(
            "service/test_daemon.py::test_the_private_store_listens_on_no_tcp_port",
            "service/test_wire.py::test_rediss_speaks_tls_and_checks_the_certificate",
        ),
        why_not="A redis:// URL to another host is not refused: many run it inside a private network.",
    ),
    Attack(
        number=18,
        attack="rights in the store that nobody needs",
        kept_out_by="`gpulockd doctor --redis-acl` prints two users, each with what it needs",
        tests=(
            f"{ACL}::test_a_client_can_do_nothing_else",
            f"{ACL}::test_the_daemon_too_has_no_more_than_it_needs",
            f"{ACL}::test_the_list_has_every_command_of_the_functions",
        ),
    ),
    Attack(
        number=19,
        attack="forged doorbells and events",
        kept_out_by="a message is a hint; the ledger decides",
        tests=(
            f"{FUZZ}::test_no_message_to_a_session_costs_a_lease_or_grants_one",
            f"{FUZZ}::test_no_message_to_the_daemons_channels_ends_it",
        ),
    ),
    Attack(
        number=20,
        attack="data that becomes code (pickle, eval, YAML objects)",
        kept_out_by="JSON and safe YAML only",
        tests=(
            f"{MANNERS}::test_nothing_turns_data_into_code",
            f"{MANNERS}::test_every_finding_of_bandit_has_a_reason",
        ),
    ),
    Attack(
        number=21,
        attack="line breaks and terminal codes in names and reasons",
        kept_out_by="escaped or refused where they come in, and again where they go out",
        tests=(
            "service/test_log_phrases.py::test_a_name_cannot_forge_a_line_of_the_log",
            f"{CONFIG}::test_a_reason_is_kept_without_what_a_terminal_obeys",
            "unit/test_alert_judging.py::test_no_name_breaks_a_line_or_hides_what_follows",
            f"{WEB}::test_the_page_escapes_what_programs_say_of_themselves",
        ),
    ),
    Attack(
        number=22,
        attack="secrets in logs, answers, command lines and cores",
        kept_out_by="marked where they are shown; LimitCORE=0 and LoadCredential= in the units",
        tests=("faults/test_canaries.py::test_no_output_has_a_secret", f"{HERE}::test_the_units_write_no_core"),
    ),
    Attack(
        number=23,
        attack="an audit log that is changed or fills the disk",
        kept_out_by="written by Lua with the change itself; the last thousand revisions are kept",
        tests=(
            f"{CONFIG}::test_history_audit_and_differences_tell_who_did_what",
            "lua/test_revisions.py::test_the_last_thousand_revisions_and_the_stable_one_are_kept",
        ),
        why_not="Who may write to the store may change it: send the log to another host where that matters.",
    ),
    Attack(
        number=24,
        attack="links and races in folders and files",
        kept_out_by="folders of one's own, made 0700; O_NOFOLLOW and owner before a secret is read",
        tests=(
            f"{FOLDERS}::test_folders_are_made_private_and_a_strangers_folder_is_refused",
            f"{LIMITS}::test_a_token_is_never_read_through_a_link",
        ),
    ),
    Attack(
        number=25,
        attack="a command in the configuration, run as root",
        kept_out_by="one command, off by default, that stands in the file alone; under systemd the daemon is not root",
        tests=(
            f"{MANNERS}::test_one_place_starts_a_shell",
            f"{HERE}::test_the_command_of_a_rollback_is_set_by_no_request",
            f"{UNITS}::test_the_only_right_is_to_signal",
        ),
    ),
    Attack(
        number=26,
        attack="somebody else listens before the daemon does",
        kept_out_by="the sockets lie in folders that only root or the user can make; in /tmp the owner is looked at",
        tests=(f"{HERE}::test_a_strangers_folder_in_tmp_is_no_daemon",),
    ),
    Attack(
        number=27,
        attack="a client that trusts a false daemon",
        kept_out_by="as 26",
        tests=(f"{HERE}::test_a_strangers_folder_in_tmp_is_no_daemon",),
        why_not="Who sets GPULOCKD_SOCKET says whom to trust: the client does not ask for the server's uid.",
    ),
    Attack(
        number=28,
        attack="the guard told to kill whom it should not",
        kept_out_by="no message names a process; only members of a run are signalled; CAP_KILL is the only right",
        tests=(
            f"{HERE}::test_what_a_message_says_of_its_sender_counts_for_nothing",
            f"{RUNS}::test_ending_never_touches_the_one_that_ends",
            "system/test_guard_lies.py::test_nobody_ends_a_run_or_takes_it_from_the_fence",
            f"{UNITS}::test_the_only_right_is_to_signal",
        ),
        why_not="There is no agent of its own: guard and API are one process, exposed by 1.0 (docs/systemd.md).",
    ),
    Attack(
        number=29,
        attack="a webhook into the host's own services (SSRF)",
        kept_out_by="off by default; link-local addresses are never asked; no redirects",
        tests=(
            f"{CHANNELS}::test_no_address_where_clouds_keep_credentials_is_asked",
            f"{CHANNELS}::test_a_webhook_to_the_link_is_refused_before_anything_is_sent",
        ),
    ),
    Attack(
        number=30,
        attack="names and command lines in metrics",
        kept_out_by="labels are of a fixed set; processes are described without their arguments",
        tests=(f"{HERE}::test_metrics_name_nobody", f"{RUNS}::test_a_process_is_described_without_its_arguments"),
    ),
    Attack(
        number=31,
        attack="a package that is not what it was",
        kept_out_by="three dependencies of the base, a lock, `make audit`",
        tests=(
            "test_architecture.py::test_importing_gpulockd_loads_nothing_heavy_and_starts_no_thread",
            "service/test_page.py::test_what_is_vendored_is_what_was_published",
        ),
    ),
    Attack(
        number=32,
        attack="a user signals the daemon",
        kept_out_by="the kernel: it is another user's process",
        tests=(f"{HERE}::test_nobody_else_may_signal_the_daemon",),
    ),
    Attack(
        number=33,
        attack="errors that tell what is inside",
        kept_out_by="problem+json with a hint; no trace",
        tests=(
            f"{WEB}::test_every_error_is_a_problem_with_a_hint",
            "service/test_web_schema.py::test_what_the_document_says_is_so_over_tcp",
            f"{FUZZ}::test_no_request_is_an_error_of_the_server",
        ),
    ),
    Attack(
        number=34,
        attack="numbers without end, texts that cost time to read",
        kept_out_by="bounds on every setting and every argument",
        tests=(
            "unit/test_units.py::test_what_is_no_duration_is_refused",
            "unit/test_units.py::test_a_text_of_digits_costs_nothing",
            "unit/test_settings_fuzz.py::test_a_tree_is_settings_or_refused_and_stays_as_it_is",
            f"{HERE}::test_no_number_without_end_is_taken",
        ),
    ),
)


def table() -> str:
    """The rows as Markdown."""
    lines = ["| # | attack | kept out by | tried in |", "|--:|---|---|---|"]
    for row in ATTACKS:
        tests = "<br>".join(f"`{test.partition('::')[2]}`" for test in row.tests)
        more = f" *{row.why_not}*" if row.why_not else ""
        lines.append(f"| S{row.number} | {row.attack} | {row.kept_out_by}.{more} | {tests or 'not tried'} |")
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """The page with the present table."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table()}{END}", page, flags=re.DOTALL)


def main() -> int:
    """Print the table, or write it."""
    asked = argparse.ArgumentParser(prog="python -m tests.faults.security", description="the attacks and their tests")
    asked.add_argument("--write", action="store_true", help="into docs/security.md")
    if asked.parse_args().write:
        PAGE.write_text(written(PAGE.read_text()))
    else:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
