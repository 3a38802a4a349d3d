"""Each rule on sentences it takes and sentences it must leave."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasitile.reading.normalise import normalise
from quasitile.reading.questions import FALLBACK_RULES, RULES, Passage
from quasitile.reading.questions.candidate import name_article


def asked(rule: str, text: str):
    return RULES[rule](Passage("A title", "Methods", "methods", text))


@pytest.mark.parametrize(
    ("rule", "text", "question", "answer"),
    [
        ("acronym", "A solid oxide fuel cell (SOFC) runs hot.", "What does SOFC stand for?", "solid oxide fuel cell"),
        ("acronym", "We used X-ray diffraction (XRD) at once.", "What does XRD stand for?", "X-ray diffraction"),
        ("acronym", "The density of states (DOS) is low.", "What does DOS stand for?", "density of states"),
        ("definition", "A phonon is a quantum of lattice vibration.", "What is a phonon?", "a quantum of lattice vibration"),
        (
            "definition",
            "A cathode is the electrode of a battery that accepts electrons during its discharge.",
            "Which term means 'the electrode of a battery that accepts electrons during its discharge'?",
            "cathode",
        ),
        ("property", "The band gap of CsPbI3 is 1.73 eV in films.", "What is the band gap of CsPbI3?", "1.73 eV"),
        (
            "property",
            "The steel has a yield strength of about 350 MPa.",
            "What is the yield strength of the steel in {article}?",
            "350 MPa",
        ),
        (
            "property",
            "The Seebeck coefficient of optimised Bi2Te3 is about 200 μV K^-1 at room temperature.",
            "What is the Seebeck coefficient of optimised Bi2Te3 at room temperature?",
            "200 μV K^-1",
        ),
        (
            "condition",
            "The pellets were sintered at 1100 °C.",
            "At what temperature were the pellets sintered in {article}?",
            "1100 °C",
        ),
        (
            "condition",
            "The wet film was then dried for 5-10 min.",
            "For how long was the wet film dried in {article}?",
            "5-10 min",
        ),
        (
            "condition",
            "Finally, the powder was heated in flowing argon.",
            "In which atmosphere was the powder heated in {article}?",
            "flowing argon",
        ),
        (
            "condition",
            "The powder was pressed under a pressure of 5 GPa.",
            "Under what pressure was the powder pressed in {article}?",
            "5 GPa",
        ),
        (
            "composition",
            "MOF-5 consists of zinc clusters and linkers.",
            "What does MOF-5 consist of, according to {article}?",
            "zinc clusters and linkers",
        ),
        (
            "comparison",
            "The density of LiCoO2 is higher than that of LiFePO4.",
            "Which has the higher density in {article}: LiCoO2 or LiFePO4?",
            "LiCoO2",
        ),
        (
            "comparison",
            "Tungsten has a higher melting point than iron.",
            "Which has the higher melting point in {article}: iron or Tungsten?",
            "Tungsten",
        ),
        (
            "comparison",
            "As shown above, the lifetime of the coated film is much longer than that of the bare film.",
            "Which has the longer lifetime in {article}: the bare film or the coated film?",
            "the coated film",
        ),
        (
            "comparison",
            "Compared with alumina, zirconia has a higher toughness.",
            "Which has the higher toughness in {article}: alumina or zirconia?",
            "zirconia",
        ),
        (
            "comparison",
            "The grain sizes of ZrO2 and CeO2 are 20 nm and 50 nm, respectively.",
            "Which has the larger grain size in {article}: CeO2 or ZrO2?",
            "CeO2",
        ),
        (
            "definition",
            "The energy that frees an electron is called the work function.",
            "What is the energy that frees an electron called?",
            "work function",
        ),
        (
            "definition",
            "The stress follows σ = Eε, where E is the elastic modulus and ε is the strain.",
            "What does the symbol E stand for in {article}?",
            "the elastic modulus",
        ),
        ("property", "Films at Tm = 250 °C were dense and smooth.", None, "250 °C"),
        ("property", "Cells kept a small overpotential (272 mV) for ten long days.", None, "272 mV"),
        ("property", "The tests ran in air at 75 % relative humidity for days.", None, "75%"),
        ("property", "The coating on the glass slide was 50 nm thick after that.", None, "50 nm"),
        ("property", "The films were grown at pressures of 5, 10 and 20 Pa in argon.", None, "5, 10 and 20 Pa"),
        ("property", "The optical transmittance of such films varied between 10% and 78%.", None, "between 10% and 78%"),
        ("property", "The error of the fitted curve was less than 3 % in all the runs.", None, "less than 3 %"),
        (
            "property",
            "The thicknesses of the anode and the cathode were 20 μm and 35 μm, respectively.",
            "What is the thickness of the cathode in {article}?",
            "35 μm",
        ),
        (
            "cause",
            "The voltage loss is caused by recombination at the interfaces.",
            "What causes the voltage loss, according to {article}?",
            "recombination at the interfaces",
        ),
        (
            "cause",
            "The broad peak is attributed to oxygen vacancies, which are many.",
            "To what is the broad peak attributed in {article}?",
            "oxygen vacancies",
        ),
        (
            "cloze",
            "Most cathodes for cars are made from the layered oxide LiCoO2 today.",
            "Complete this sentence from {article}: Most cathodes for cars are made from the layered oxide ____ today.",
            "LiCoO2",
        ),
        (
            "true_false",
            "The best cells with a single absorber reach an efficiency of 25%.",
            "True or false, according to {article}: The best cells with a single absorber reach an efficiency of 50%.",
            "False",
        ),
        (
            "choice",
            "The best cells with a single absorber reach an efficiency of 25%.",
            "Which value belongs in the blank, according to {article}? "
            "The best cells with a single absorber reach an efficiency of ____. Choose from: OPTIONS.",
            "25%",
        ),
        (
            "reason",
            "The conductivity of the pressed film is low because of open pores in the film.",
            "Which reason does {article} give for this: 'The conductivity of the pressed film is low'?",
            "open pores in the film",
        ),
        (
            "consequence",
            "The slow cooling of the melt leads to the growth of large grains.",
            "What does the slow cooling of the melt lead to, according to {article}?",
            "the growth of large grains",
        ),
    ],
)
def test_rules_ask(rule, text, question, answer):
    candidates = asked(rule, text)
    asked_for = [(re.sub(r"\(a\).*(?=\.$)", "OPTIONS", each.questions[0]), each.answer) for each in candidates]
    assert not question or not answer or (question, answer) in asked_for
    assert answer is None or answer in [each.answer for each in candidates]
    assert all(2 <= len(set(candidate.questions)) <= 4 for candidate in candidates)
    assert all(candidate.kind == {"reason": "cause", "consequence": "cause"}.get(rule, rule) for candidate in candidates)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("acronym", "A fuel cell (Fig) and the sample (ABC) are here."),
        ("acronym", "Growth of films by hand (CVD) is slow."),
        ("definition", "It is a metal that conducts electricity well."),
        ("definition", "The reason is a lack of oxygen in the furnace."),
        ("definition", "Graphene is a promising candidate for batteries of all kinds."),
        ("definition", "This result is a sign of order in the film."),
        ("property", "Its band gap is 1.5 eV and grows."),
        ("property", "The band gap of which is 1.5 eV."),
        ("property", "The strength of the steel is 5 % higher than before."),
        ("property", "The band gap of the film is 300 °C."),
        ("condition", "It was sintered at 1100 °C."),
        ("condition", "The pellets were sintered at 1100, 1200 and 1300 °C."),
        ("condition", "The pellets were sintered; the film on top of them melts at 1100 °C."),
        ("composition", "It consists of zinc."),
        ("comparison", "This is higher than that of iron."),
        ("comparison", "The density is higher than 5 nm."),
        ("cause", "This is attributed to oxygen vacancies."),
        ("cause", "The loss is due to this effect of the wall."),
        ("cloze", "Fig. 3 shows the layered oxide LiCoO2 in a cell of the car."),
        ("true_false", "They reach an efficiency of 25% in the laboratory under the lamp."),
        ("summary", "Too short."),
        ("choice", "The samples were kept for a while in the dark room of the laboratory."),
        ("reason", "It is low because of many pores in the film."),
        ("consequence", "This leads to the growth of large grains."),
    ],
)
def test_rules_leave(rule, text):
    assert asked(rule, text) == []


def test_every_rule_is_tried_above():
    marks = {parameters[0] for parameters in test_rules_ask.pytestmark[0].args[1]}
    assert marks | {"summary"} == set(RULES)


def test_options_are_four_of_one_unit_with_the_right_one_among_them():
    candidate = asked("choice", "The best cells with a single absorber reach an efficiency of 25%.")[0]
    assert len(set(candidate.choices)) == 4
    assert candidate.answer in candidate.choices
    assert all(option.endswith("%") for option in candidate.choices)


def test_summary_names_the_section_and_the_article():
    text = "Garnet electrolytes conduct lithium ions through channels. "
    text += "The garnet electrolytes resist the lithium metal of the anode. "
    text += "In summary, the garnet electrolytes of this kind are stable."
    candidate = asked("summary", text)[0]
    question = name_article(candidate.questions[0], "A title")
    assert question == "What is the main statement of the section 'Methods' of the article 'A title'?"
    assert candidate.answer in text


WORDS = [
    "The", "A", "is", "was", "of", "at", "in", "for", "and", "gap", "LiCoO2", "1100", "°C", "2", "h", "(SOFC)", "solid",
    "oxide", "fuel", "cell", "heated,", "attributed", "to", "than", "higher", "that.", "consists",
]  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*WORDS, "\n\n", ".", "It", "has a density of 5 g cm^-3."]), max_size=60)
    .map(" ".join)
    .map(normalise)
)
def test_evidence_stands_where_every_rule_says(text):
    passage = Passage("A title", "S", "other", text)
    for rule in [*RULES.values(), *FALLBACK_RULES.values()]:
        for candidate in rule(passage):
            assert text[candidate.evidence.start : candidate.evidence.stop] == candidate.evidence.text
            assert candidate.questions
            assert candidate.answer
