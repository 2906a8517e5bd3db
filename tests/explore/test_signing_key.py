# SPDX-License-Identifier: Apache-2.0
"""The agent's conclusions hold under every firmware; without one of its rules, they do not."""

from __future__ import annotations

import pytest
from explore.signing_key import MUTANTS, READINGS, Agent, Choices, explore


@pytest.mark.parametrize("choices", READINGS, ids=lambda each: each.name)
def test_in_every_course_of_events_a_file_holds_what_the_signing_key_needs(
    choices: Choices,
) -> None:
    result = explore(choices, depth=4)
    assert result.wrong == "", result.schedule
    assert result.states > 100
    assert result.filled > result.states, "must not pass because every file is left empty"
    assert all(result.reasons)


@pytest.mark.parametrize("agent", MUTANTS, ids=lambda each: each.name)
def test_an_agent_with_one_rule_less_is_found_out(agent: Agent) -> None:
    found = [explore(choices, agent, depth=4) for choices in READINGS]
    assert any(each.wrong and each.schedule for each in found)
