"""Batches of `make soak`: each can be made again, alone, by the options that are told when it fails."""

from __future__ import annotations

from tests.device.rig import FAR
from tests.soak.__main__ import again, batches


def test_each_batch_is_made_again_by_its_options() -> None:
    every = list(batches(frames=4_100, sends=130, programs=14, first=6))
    for batch in every:
        given = {name: int(value) for name, value in zip(*[iter(again(batch).replace("--", "").split())] * 2,
                                                         strict=True)}
        assert list(batches(given["frames"], given["sends"], given["programs"], given["seed"])) == [batch]
    assert sum(batch.size for batch in every if batch.kind == "frames") == 4_100
    assert sum(batch.size for batch in every if batch.kind == "sends") == 130
    for kind in ("frames", "program"):
        assert {batch.timing is FAR for batch in every if batch.kind == kind} == {True, False}
    assert {batch.coalesces for batch in every if batch.kind == "program"} == {True, False}
