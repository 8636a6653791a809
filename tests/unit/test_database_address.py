"""An address that is mistyped is refused in words that do not tell its password: they end in logs and on screens."""

from collections.abc import Callable

import pytest

from aimx.audit import anchors_postgres, postgres
from aimx.audit.log import LogError
from aimx.backup import postgres as backup
from aimx.backup.manifest import BackupError
from aimx.cli.db import check
from aimx.cli.failure import Failed


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:s3cr%et@127.0.0.1:1/x",
        "postgresql://u:s3cr et@127.0.0.1:1/x",
        "postgresql://u:s3cret@[::1/x",
        "postgresql://u:x@s3cret@127.0.0.1:1/x",
    ],
)
@pytest.mark.parametrize("use", [postgres.install, anchors_postgres.install, backup.check_empty, check])
def test_a_mistyped_address_is_refused_without_its_password(use: Callable[[str], object], address: str) -> None:
    with pytest.raises((LogError, BackupError, Failed)) as refused:
        use(address)
    assert "s3cr" not in str(refused.value)
    assert "URL" in str(refused.value)
