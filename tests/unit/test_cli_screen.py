"""What a stranger wrote is printed, not obeyed."""

from aimx.cli.screen import harmless


def test_escape_sequences_of_a_mail_do_not_reach_the_terminal() -> None:
    clipboard = "\x1b]52;c;cm0gLXJmIC8=\x07"
    assert harmless(f"a{clipboard}b\x9b2J\x7f") == r"a\x1b]52;c;cm0gLXJmIC8=\x07b\x9b2J\x7f"


def test_lines_tabs_and_letters_stay() -> None:
    assert harmless("grün\t→\n日本") == "grün\t→\n日本"
