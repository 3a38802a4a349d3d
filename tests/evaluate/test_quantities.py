import pytest

from quasitile.evaluate.properties import property_report, property_scores
from quasitile.evaluate.quantities import quantities, same_value

SAME = [
    ("1.55 eV", "1.55", "eV"),
    ("It is 1.550 eV.", "1.55", "eV"),
    ("1550 meV", "1.55", "eV"),
    ("1200 mAh/g", "1.2", "Ah/g"),
    ("1200 mAh g^-1", "1.2 Ah g⁻¹", ""),
    ("1,200 mAh g-1", "1200", "mAh/g"),
    ("12.8-13.0", "12.8–13.0", ""),
    ("between 1.15 and 1.25 eV", "1.15-1.25", "eV"),
    ("10% to 78%", "10-78", "%"),
    ("between 10% and 78%", "10-78", "%"),
    ("made in 2015 and heated to 300 K", "300", "K"),
    ("at 5 and 10 nm", "10", "nm"),
    ("165 ± 10 nm", "165", "nm"),
    ("165 nm", "165 ± 10", "nm"),
    ("165±10 nm", "165 +/- 10", "nm"),
    ("1.2 × 10^-3 S/cm", "1.2x10−3", "S cm^-1"),
    ("1.2e-3 S/cm", "0.12", "S/m"),
    ("10^-5 S cm^-1", "1 × 10^-5", "S/cm"),
    ("13 percent", "13", "%"),
    ("13%", "13 %", ""),
    ("-3 V", "−3", "V"),
    ("2.5 W/(m K)", "2.5", "W m^-1 K^-1"),
    ("2.5 W/mK", "2.5", "W/m K"),
    ("90 min", "1.5", "h"),
    ("5 Å", "0.5", "nm"),
    ("500 cycles", "500", "cycles"),
    ("after 300 K it is 4.2 V vs. RHE", "4.2", "V"),
    ("In LaFeO3 the gap is 2.1 eV", "2.1", "eV"),
    ("800 °C in air", "800", "°C"),
    ("> 90 %", "above 90", "%"),
    ("5 wt%", "5", "wt.%"),
    ("cubic", "Cubic", ""),
    ("7", "7.0", ""),
    ("40 mV dec−1", "40", "mV/dec"),
]
DIFFERENT = [
    ("1.55", "1.55", "eV"),
    ("15.5 eV", "1.55", "eV"),
    ("1.55 V", "1.55", "eV"),
    ("1.55 mV", "1.55", "V"),
    ("3 V", "-3", "V"),
    ("12.8", "12.8-13.0", ""),
    ("165 ± 20 nm", "165 ± 10", "nm"),
    ("10^5 S/cm", "10^-5", "S/cm"),
    ("300 °C", "300", "K"),
    ("5 wt%", "5", "%"),
    ("5 at%", "5", "wt%"),
    ("< 5 K", "5", "K"),
    ("90 %", "above 90", "%"),
    ("cubic", "tetragonal", ""),
    ("", "5", "K"),
    ("La2O3", "2", ""),
    ("500 hours", "500", "cycles"),
]


@pytest.mark.parametrize(("given", "value", "unit"), SAME)
def test_equal_values(given, value, unit):
    assert same_value(given, value, unit)


@pytest.mark.parametrize(("given", "value", "unit"), DIFFERENT)
def test_unequal_values(given, value, unit):
    assert not same_value(given, value, unit)


def test_all_values_of_a_text_in_order():
    lows = [value.low for value in quantities("From 2 V to 3 V at 300 K, La0.8Sr0.2 and 1.5(2) nm")]
    assert lows == pytest.approx([2, 300, 1.5e-9])


RECORDS = [
    {"material": "Si", "property": "band gap", "value": "1.1", "unit": "eV", "evidence": "Si has a gap of 1.1 eV."},
    {"material": "Ge", "property": "band gap", "value": "0.7", "unit": "eV", "evidence": "Ge: 0.7 eV."},
    {"material": "GaN", "property": "structure", "value": "wurtzite", "unit": "", "evidence": "GaN is wurtzite."},
]


def test_precision_counts_what_was_stated_and_recall_what_there_is():
    assert property_scores(RECORDS, ["1100 meV", "I do not know", "cubic"]) == {
        "f1": pytest.approx(2 / 5), "precision": 0.5, "recall": pytest.approx(1 / 3), "num_records": 3,
    }  # fmt: skip
    assert property_scores(RECORDS, ["1.1 eV", "0.7 eV", "Wurtzite."])["f1"] == 1
    assert property_scores(RECORDS, ["", "", ""])["precision"] == 0


def test_the_model_is_asked(model, tokenizer):
    assert property_report(model, tokenizer, RECORDS, max_new_tokens=3)["num_records"] == 3
    with pytest.raises(ValueError, match="empty"):
        property_report(model, tokenizer, [])
