"""Sites and layers as a user writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.sites import COMPONENTS, POSITIONS, Site, parse_layers, parse_sites

_sites = st.builds(Site, st.sampled_from(COMPONENTS), st.sampled_from(POSITIONS))
_spaces = st.text(" ", max_size=2)


@given(site=_sites, left=_spaces, right=_spaces)
def test_a_site_reads_back_from_what_it_prints(site: Site, left: str, right: str) -> None:
    assert Site.parse(f"{left}{site}{right}") == site


@given(sites=st.lists(_sites, min_size=1), data=st.data())
def test_a_list_of_sites_means_a_set_in_one_order(sites: list[Site], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(sites))
    assert parse_sites(",".join(map(str, sites))) == parse_sites(" , ".join(map(str, shuffled)))
    assert set(parse_sites(",".join(map(str, sites)))) == set(sites)
    assert len(parse_sites(",".join(map(str, sites)))) == len(set(sites))


@given(text=st.text(max_size=20))
def test_anything_else_is_no_site_and_the_message_names_those_that_are(text: str) -> None:
    real = {f"{component}.{position}" for component in COMPONENTS for position in POSITIONS}
    if text.strip() in real:
        assert str(Site.parse(text)) == text.strip()
        return
    with pytest.raises(ValueError, match=r"join one of resid, .* such as resid\.last") as caught:
        Site.parse(text)
    assert repr(text.strip()) in str(caught.value)


@pytest.mark.parametrize("text", ["resid", "last", "resid.", ".last", "resid.last.mean", "RESID.last", "resid.last;resid.mean"])
def test_a_near_miss_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="there is no site"):
        parse_sites(text)


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_an_empty_list_of_sites_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no site is named"):
        parse_sites(text)


@given(n_layers=st.integers(0, 40), data=st.data())
def test_layers_are_those_python_would_pick_from_the_embedding_to_the_last_block(n_layers: int, data: st.DataObject) -> None:
    everything = list(range(n_layers + 1))
    assert parse_layers("all", n_layers) == tuple(everything)
    layer = st.integers(0, n_layers)
    ranges = st.tuples(layer, st.integers(0, n_layers + 1)).filter(lambda pair: pair[0] < pair[1])
    parts = data.draw(st.lists(layer | ranges, min_size=1, max_size=5))
    expected: set[int] = set()
    for part in parts:
        expected |= {part} if isinstance(part, int) else set(everything[part[0] : part[1]])
    text = ", ".join(str(part) if isinstance(part, int) else f"{part[0]}:{part[1]}" for part in parts)
    assert parse_layers(text, n_layers) == tuple(sorted(expected))


@pytest.mark.parametrize("text", ["", "one", "-1", "1,", "1,,2", "1:", ":3", "0:4:2", "1.5", "all,3", "1 2"])
def test_what_is_neither_a_layer_nor_a_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read layers"):
        parse_layers(text, 30)


@given(n_layers=st.integers(0, 40), beyond=st.integers(1, 100))
def test_a_layer_the_model_does_not_have_is_named(n_layers: int, beyond: int) -> None:
    missing = n_layers + beyond
    for text in (f"{missing}", f"0,{missing}", f"{missing}:{missing + 3}"):
        with pytest.raises(ValueError, match=rf"no layer {missing};.* to {n_layers}$"):
            parse_layers(text, n_layers)
    with pytest.raises(ValueError, match=rf"no layer {n_layers + 1};"):
        parse_layers(f"0:{missing + 1}", n_layers)


@pytest.mark.parametrize("text", ["3:3", "5:2"])
def test_a_range_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="holds no layer"):
        parse_layers(text, 30)
