"""The table of participants: read whole or refused by line, and never quoted."""

from __future__ import annotations

from pathlib import Path

import pytest
from voxfed.client.participants import condition_numbers, number_of, read_participants
from voxfed.study.condition import ConditionSettings
from voxfed.study.errors import Refusal, VolumeError

SEX = ConditionSettings(kind="class", column="sex", values=("F", "M"))
AGE = ConditionSettings(kind="attributes", columns=("age", "kg"), ranges=((20, 90), (0, 200)))


def table(folder: Path, text: str, name: str = "participants.tsv") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder


@pytest.mark.parametrize("first", ["participant_id", "patient"])
@pytest.mark.parametrize(("name", "mark"), [("participants.tsv", "\t"), ("participants.csv", ",")])
def test_values_by_patient_and_column(tmp_path: Path, first: str, name: str, mark: str) -> None:
    """A BOM, blanks, an empty line and quotes of a spreadsheet; n/a and nothing are missing."""
    rows = [[first, "sex", "age"], ["a", " F", "41.5"], [], ["b b", "n/a", ""], ['"c"', "M", "7"]]
    table(tmp_path, "\ufeff" + "\r\n".join(mark.join(row) for row in rows), name)
    assert read_participants(tmp_path) == {
        "a": {"sex": "F", "age": "41.5"},
        "b b": {},
        "c": {"sex": "M", "age": "7"},
    }


def test_no_table_is_an_empty_one(tmp_path: Path) -> None:
    """Most cohorts have none, and most studies need none."""
    assert read_participants(tmp_path) == {}


FAULTS = {
    "twice": ("participant_id\tsex\na\tF\na\tM\n", "participants.tsv:3: the patient stands there"),
    "too long": ("participant_id\tsex\na\tF\tx\n", "participants.tsv:2: the row has too many"),
    "too short": ("participant_id\tsex\n\na\n", "participants.tsv:3: the row has too many"),
    "another column": ("subject\tsex\na\tF\n", "participants.tsv:1: the first column is another"),
    "commas": ("participant_id,sex\na,F\n", "participants.tsv:1: the first column is another"),
    "a name twice": ("participant_id\tsex\tsex\na\tF\tM\n", "two columns have one name"),
    "nothing": ("", "the first column is another"),
    "open quote": ('participant_id\tsex\n"a\tF\n', "no table in UTF-8"),
}


@pytest.mark.parametrize(("text", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_a_wrong_table_is_named_by_line(tmp_path: Path, text: str, fault: str) -> None:
    """Half a table would leave a patient with another's sex."""
    with pytest.raises(VolumeError) as caught:
        read_participants(table(tmp_path, text))
    assert fault in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("subject\tage\nokbp-001\t89\n", "got subject"),
        ("MRID\tAge\nSubj1\t89\n", "got MRID"),
        ("patient_id\tage\na\t89\n", "got patient_id"),
        ("age\tparticipant_id\n89\ta\n", "got age"),
        ("sub-1\t89\tF\nsub-2\t89\tM\n", "got no name of a column"),
        ("a,F,89\nb,M,89\n", "got no name of a column"),
    ],
)
def test_another_first_column_is_named_and_the_one_to_write(
    tmp_path: Path, text: str, got: str
) -> None:
    """It is not taken for the patients' names; where a patient's row stands first, it is hidden."""
    with pytest.raises(VolumeError) as caught:
        read_participants(table(tmp_path, text))
    assert f"{got}, expected participant_id or patient" in caught.value.message
    assert "call the column" in caught.value.hint
    assert "participant_id" in caught.value.hint
    assert "89" not in caught.value.message + caught.value.hint


def test_two_tables_and_other_encodings_are_refused(tmp_path: Path) -> None:
    """Nobody can say which one holds; and Latin-1 would change names."""
    (tmp_path / "participants.csv").write_bytes("patient,näme\n".encode("latin-1"))
    with pytest.raises(VolumeError, match="no table in UTF-8"):
        read_participants(tmp_path)
    with pytest.raises(VolumeError, match="two tables"):
        read_participants(table(tmp_path, "participant_id\n"))


def test_classes_are_counted_in_the_plans_order() -> None:
    """The same value is the same class at every site, whoever is there."""
    found = {"a": {"sex": "M"}, "b": {"sex": "F"}, "c": {"sex": "M"}}
    assert condition_numbers(found, ["a", "b"], SEX) == {"a": (1,), "b": (0,)}


def test_attributes_are_mapped_to_the_unit_range() -> None:
    """Closed form: a range's ends are -1 and 1, its middle 0; columns keep the plan's order."""
    found = {
        "low": {"age": "20", "kg": "200"},
        "middle": {"kg": "50", "age": "55.0", "more": "x"},
        "high": {"age": "9e1", "kg": "0"},
    }
    numbers = condition_numbers(found, found, AGE)
    assert numbers == {"low": (-1.0, 1.0), "middle": (0.0, -0.5), "high": (1.0, -1.0)}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kg": "70"},
        *(
            {"age": age, "kg": "70"}
            for age in ("19.9", "91", "91+", "old", "nan", "inf", "4_0", "+")
        ),
    ],
)
def test_a_patient_without_attributes_is_refused(values: dict[str, str]) -> None:
    """By number and name with what is expected; the value itself is never told."""
    found = {"a": {"age": "30", "kg": "70"}, "z": values, "y": values}
    with pytest.raises(Refusal) as caught:
        condition_numbers(found, found, AGE)
    text = caught.value.message
    assert "2 of 3 patients" in text
    assert "first: z" in text
    assert "age: 20 to 90, kg: 0 to 200" in text
    assert values.get("age", "91") not in text.replace("20 to 90", "")


@pytest.mark.parametrize("values", [{}, {"sex": "f"}, {"sex": "secret"}])
def test_a_patient_of_no_class_is_refused(values: dict[str, str]) -> None:
    """Also one who stands not in the table at all; classes are spelt as the plan spells them."""
    with pytest.raises(Refusal, match="sex: one of F, M") as caught:
        condition_numbers({"a": {"sex": "F"}, "b": values}, ["a", "b", "c"], SEX)
    assert "2 of 3 patients" in caught.value.message
    assert "secret" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("41.5", 41.5),
        ("-3", -3.0),
        ("9e1", 90.0),
        ("89+", 89.0),
        ("1_0", None),
        ("1_0+", None),
        ("89++", None),
        ("+", None),
        ("", None),
        ("41,5", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e400", None),
        ("old", None),
    ],
)
def test_a_cell_is_one_number_or_none(cell: str, number: float | None) -> None:
    """Attributes and bands of age are read alike: a capped age is its cap, and 1_0 is not ten."""
    assert number_of(cell) == number


def test_a_capped_age_is_told_as_its_cap() -> None:
    """BIDS writes 89+ of whoever is older; such a patient can take part."""
    found = {"a": {"age": "89+", "kg": "100"}, "b": {"age": "89", "kg": "100"}}
    numbers = condition_numbers(found, found, AGE)
    assert numbers["a"] == numbers["b"] == (pytest.approx(2 * 69 / 70 - 1), 0.0)
