"""Faults in the command line and the daemon."""

from tests.mutation.mutation import Mutation

_STATE, _JOBS = ("test_cli_drift.py",), ("test_daemon_jobs.py",)
_JOURNAL = ("test_cli_journal.py::test_half_a_change_at_the_end_does_not_count",)
_ORDER = ("test_cli_journal.py::test_entries_come_and_go_over_several_journals",)
_CONFIG, _WATCH, _WEB = ("test_config_file.py",), ("test_watch_reflector.py",), ("test_daemon_web.py",)
_PARTS = ("test_daemon_parts.py",)

CTL = (
    Mutation(
        "health checks are not remembered",
        "ctl/store/state.py",
        "tuple(plan.health_checks.values()),",
        "(),",
        _STATE,
    ),
    Mutation(
        "a journal's last step counts though only half of it is there",
        "journal.py",
        "if end > len(data):",
        "if at > len(data):",
        _JOURNAL,
    ),
    Mutation(
        "entries that went come back from the journal",
        "journal.py",
        "tuple(entry.key for entry in change.entries if entry.new is None),",
        "(),",
        _ORDER,
    ),
    Mutation(
        "journals are replayed in no order",
        "journal.py",
        "for number in sorted(number for number in _numbers(base) if number >= first):",
        "for number in sorted((number for number in _numbers(base) if number >= first), reverse=True):",
        _ORDER,
    ),
    Mutation(
        "a file that another user made is the lock",
        "ctl/store/lock.py",
        "if mine.st_uid not in (0, os.geteuid()):",
        "if False:",
        ("test_lock.py::test_a_file_that_somebody_else_made_is_no_lock",),
    ),
    Mutation(
        "a lock whose file was removed counts as held",
        "ctl/store/lock.py",
        "if path.stat().st_ino == mine.st_ino:",
        "if True:",
        ("test_lock.py::test_a_file_that_its_last_holder_removed_is_no_lock",),
    ),
    Mutation(
        "a client may have as many connections as it likes",
        "guard.py",
        "if len(mine) >= MOST_A_CLIENT:",
        "if False:",
        _WEB,
    ),
    Mutation(
        "a slow request is waited for",
        "guard.py",
        "if now - connection.since > connection.patience:",
        "if False:",
        _WEB,
    ),
    Mutation(
        "a job that failed is never tried again",
        "jobs.py",
        "await asyncio.sleep(self.failure(name, error, retry))",
        "return await asyncio.sleep(self.failure(name, error, retry))",
        _JOBS,
    ),
    Mutation(
        "a failure in a batch loses what was in it",
        "reconcile.py",
        "self.node = before\n            self.inbox.put_back(batch)\n            self._replan = True",
        "self.node = before\n            \n            self._replan = True",
        _JOBS,
    ),
    Mutation(
        "of two changes in a row the older state is forgotten",
        "plan/change.py",
        "entries[change.key] = EntryChange(earlier.old, change.new) if earlier else change",
        "entries[change.key] = change",
        _PARTS,
    ),
    Mutation(
        "what the kernel refused is forgotten",
        "ledger.py",
        "self._held |= {entry.key: entry.old for entry in change.entries}",
        "self._held |= {}",
        (*_PARTS, "test_daemon_kernel.py"),
    ),
    Mutation(
        "what the inbox took back undoes what was heard since",
        "inbox.py",
        "if item.ref not in self._deletes and item.ref not in self._upserts:",
        "if True:",
        ("test_daemon_parts.py::test_what_is_put_back_does_not_undo_what_was_heard_since",),
    ),
    Mutation(
        "what is missing in a new list stays",
        "inbox.py",
        "gone = [name for name in self._known[kind] if name not in present and covers(name[1])]",
        "gone: list[tuple[str, str]] = []",
        _WATCH,
    ),
    Mutation(
        "a watch begins again where it began",
        "watch.py",
        "self._version = meta.resource_version or self._version",
        "self._version = self._version or meta.resource_version",
        _WATCH,
    ),
    Mutation(
        "the time that a server asks for is not kept",
        "watch.py",
        "await asyncio.sleep(asked)  # what the server asks for is kept, whatever other watches find out",
        "await asyncio.sleep(0)",
        _WATCH,
    ),
    Mutation(
        "an expired version is asked for again",
        "watch.py",
        "if isinstance(error, WatchError) or (isinstance(error, ApiStatus) and error.code == 410):",
        "if isinstance(error, WatchError):",
        _WATCH,
    ),
    Mutation(
        "negative durations are taken",
        "config.py",
        "if duration < 0:",
        "if duration < -1e18:",
        _CONFIG,
    ),
    Mutation(
        "an IPv6 bind address leaves the others at IPv4",
        "config.py",
        'everywhere, loopback = ("::", "::1") if ":" in bind else ("0.0.0.0", "127.0.0.1")',
        'everywhere, loopback = ("0.0.0.0", "127.0.0.1")',
        _CONFIG,
    ),
    Mutation(
        "policies that may not be listed are none",
        "ctl/daemon/host_routing/policies.py",
        "if kind == _POLICY and status == _NOT_FOUND:",
        "if kind == _POLICY:",
        ("test_host_routing_keeper.py::test_what_may_not_be_listed",),
    ),
    Mutation(
        "everything may go past the stack before the policies are known",
        "ctl/daemon/host_routing/policies.py",
        "if _POLICY in self._missing:",
        "if False:",
        ("test_host_routing_keeper.py::test_nothing_goes_before_all_is_known",),
    ),
    Mutation(
        "an announcement is made before programs are attached",
        "ctl/daemon/forwarding.py",
        "return wrong or await self._kernel.call(self._kernel.plane.why_not_forwarding)",
        "return wrong",
        ("test_forwarding_keeper.py::test_what_is_announced_follows_the_programs",),
    ),
    Mutation(
        "a list of other nodes takes this one away",
        "ctl/sources/watch.py",
        'return (name == value) != field.endswith("!")',
        "return True",
        ("test_forwarding_keeper.py::test_which_names_a_watch_covers",),
    ),
    Mutation(
        "journals are numbered by the clock alone",
        "ctl/store/journal.py",
        "return max(time.time_ns(), *(number + 1 for number in _numbers(base)), 1)",
        "return time.time_ns()",
        ("test_daemon_clock.py::test_the_plan_that_is_left_is_the_last_one",),
    ),
    Mutation(
        "a table that is gone waits for the next comparison",
        "ctl/daemon/sync/drift.py",
        "return await self._gone()",
        "return False",
        ("test_daemon_drift.py",),
    ),
)
