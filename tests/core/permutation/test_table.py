"""docs/networks.md says what the code finds."""

import pytest

from scripts import symmetry_table as table

ROWS = {
    cells[1].strip(): cells for cells in (line.split("|") for line in table.PAGE.read_text().splitlines()) if len(cells) > 2
}


def test_every_network_of_the_table_is_proved():
    assert list(ROWS)[2:] == list(table.NETWORKS)
    errors = {name: cells[6].strip() for name, cells in list(ROWS.items())[2:]}
    assert {name for name, error in errors.items() if not error or float(error) > 1e-9} == set()


@pytest.mark.parametrize(
    "name",
    ["resnet18", "regnetx_002", "torchvision:shufflenet_v2_x0_5", "vit_tiny_patch16_224", "mobilevit_xxs", "levit_128s"],
)
def test_a_row_is_what_is_found(name):
    found = table.row(name)
    assert found["error"] < 1e-9
    assert table.line(name, found).split("|")[1:6] == ROWS[name][1:6]
