from torpor.daemon.failures import guest_failure, never_its_turn, sandbox_failure, timed_out
from torpor.daemon.guest_state import GuestState, Phase, after_event, after_status

READY = {"event": "ready", "generation": 1, "pid": 7}


def test_a_life():
    state = after_event(GuestState(), {"event": "booted", "pid": 1})
    assert state.phase is Phase.UNKNOWN
    state = after_event(state, READY)
    assert (state.phase, state.generation) == (Phase.READY, 1)
    state = after_event(state, {"event": "exited", "generation": 1, "exit_code": -9})
    assert state.ended
    assert state.exit_code == -9
    state = after_event(state, {**READY, "generation": 2})
    assert (state.phase, state.exit_code) == (Phase.READY, None)


def test_news_of_an_earlier_process_changes_nothing():
    state = GuestState(Phase.READY, 3)
    assert after_event(state, {"event": "exited", "generation": 2, "exit_code": 1}) is state
    assert after_status(state, {"guest": "exited", "generation": 2}) is state


def test_wrong_types_count_as_absent():
    body = {"event": "failed", "generation": "x", "exit_code": [], "message": 7, "stderr_tail": {}}
    state = after_event(GuestState(Phase.STARTING, 1), body)
    assert (state.phase, state.generation) == (Phase.FAILED, 1)
    assert (state.exit_code, state.stderr_tail) == (None, "")
    assert after_event(state, {"event": "dropped"}) is state


def test_status_after_missed_events():
    status = {
        "guest": "failed",
        "generation": 2,
        "exit_code": 3,
        "stderr_tail": "oops",
        "failure": {"reason": "exited", "message": "it exited"},
        "link": "open",
    }
    state = after_status(GuestState(), status)
    assert (state.phase, state.exit_code, state.failure) == (Phase.FAILED, 3, "it exited")
    assert state.link_error is None
    assert after_status(state, {"guest": "unknown", "generation": 2}) is state
    broken = after_status(GuestState(), {"guest": "ready", "link": "failed", "link_error": "bad"})
    assert broken.link_error == "bad"


def test_failures_say_what_happened():
    state = GuestState(
        Phase.FAILED,
        generation=1,
        exit_code=1,
        failure="it exited before answering",
        stderr_tail="Traceback\nImportError: x",
    )
    text = str(guest_failure(state, ["/usr/bin/python3", "-m", "nothing"]))
    assert "python3 did not start" in text
    assert "exit code 1" in text
    assert "ImportError: x" in text
    assert "link" in str(guest_failure(GuestState(link_error="bad crc"), ["p"]))
    assert "ended at once" in str(guest_failure(GuestState(Phase.EXITED, 1, 0), ["p"]))
    text = str(sandbox_failure("out of memory (limit 1.0 GiB)", ""))
    assert "out of memory" in text
    assert "turn" in str(never_its_turn("py", 3))
    assert "was not ready in 3 s" in str(timed_out("py", 3, stderr="x"))


def test_a_guest_that_gave_up_waiting():
    body = {"event": "failed", "generation": 1, "reason": "timeout", "message": "no ports"}
    assert after_event(GuestState(), body).timed_out
    status = {"guest": "failed", "generation": 1, "failure": {"reason": "timeout", "message": "m"}}
    assert after_status(GuestState(), status).timed_out
    assert not after_event(after_event(GuestState(), body), {**READY, "generation": 2}).timed_out
