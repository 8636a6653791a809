"""Write the catalogue into docs/audit-threat-model.md."""

from tests.system.attacks.deeds import DOCUMENT, filled

if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))
