"""Which takeovers were no deaths, but the loss of this process's own connection (G4)."""

from mqcore.connection.survived import Survived
from mqcore.messages.message import Message

ONE, OTHER = Message(id="one", body=b""), Message(id="other", body=b"")


def test_a_loss_of_our_own_explains_a_takeover_of_that_copy_and_no_other() -> None:
    survived = Survived()
    survived.add("q", ONE, 0.0, started=True)
    assert survived.explains("q", ONE, 1.0)
    assert not survived.explains("q", OTHER, 1.0)
    assert not survived.explains("q.quarantine", ONE, 1.0), "another copy"
    assert not survived.explains("q", ONE.moved("q"), 1.0), "another copy"


def test_what_had_been_started_is_believed_for_a_minute_from_its_first_loss() -> None:
    survived = Survived()
    for second in range(0, 60, 5):
        survived.add("q", ONE, second, started=second > 9)
        assert survived.explains("q", ONE, second + 1)
    assert survived.explains("q", ONE, 70)
    assert not survived.explains("q", ONE, 71), "61 s after it was first lost as started"


def test_what_had_not_been_started_is_believed_each_time() -> None:
    survived = Survived()
    for second in range(0, 3600, 60):
        survived.add("q", ONE, second, started=False)
        assert survived.explains("q", ONE, second + 1)


def test_old_losses_are_forgotten_and_no_more_are_kept_than_a_process_holds() -> None:
    survived = Survived()
    survived.add("q", ONE, 0.0, started=False)
    survived.add("q", OTHER, 601.0, started=False)
    assert len(survived._lost) == 1
    for number in range(20_000):
        survived.add("q", Message(id=f"m{number}", body=b""), 601.0, started=False)
    assert len(survived._lost) == 10_000
    assert survived.explains("q", Message(id="m19999", body=b""), 602.0)
