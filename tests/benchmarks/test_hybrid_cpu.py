# SPDX-License-Identifier: Apache-2.0
"""The comparison of flat and padded batches of hybrid models, on the smallest work."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import hybrid_cpu


def test_the_table_has_both_arms_at_one_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--families", "lfm2", "--rounds", "1", "--batches", "1", "--rows", "3", "--median", "12"]
    monkeypatch.setattr("sys.argv", ["hybrid_cpu", *words, "--threads", "1", "--results", str(tmp_path)])
    hybrid_cpu.main()
    (line,) = (line for line in (tmp_path / "hybrid_cpu.md").read_text().splitlines() if line.startswith("| lfm2"))
    flat, padded, ratio, difference = (float(cell.replace(",", "")) for cell in line.split("|")[2:6])
    assert ratio == pytest.approx(flat / padded, abs=0.02)
    assert difference < 1e-5
    assert line in capsys.readouterr().out


def test_an_unknown_family_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hybrid_cpu.parse_options(["--families", "lfm9"])
    assert "unknown family 'lfm9'" in capsys.readouterr().err
