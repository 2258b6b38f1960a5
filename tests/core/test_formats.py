from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.formats import canonical_uuid, epoch_s, is_canonical_uuid


@given(st.datetimes(timezones=st.just(UTC)))
def test_epoch_agrees_with_datetime(at: datetime) -> None:
    assert epoch_s(at.isoformat()) == pytest.approx(at.timestamp(), abs=1e-4)


@given(st.uuids())
def test_a_uuid_is_made_canonical(uuid: Any) -> None:
    for text in (str(uuid), str(uuid).upper(), uuid.hex):
        assert canonical_uuid(text) == str(uuid)
    assert is_canonical_uuid(str(uuid))
    assert canonical_uuid(str(uuid).replace("-", "", 1)) is None
