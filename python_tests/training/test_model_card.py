"""The card of an exported model: what it says, and that no name can break out of it."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from spanbert_ext.settings.build import as_flat_dict
from spanbert_ext.training import model_card
from spanbert_ext.training.config import PretrainConfig

BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
}
TOKENIZER = {"model": {"type": "WordPiece"}, "normalizer": {"lowercase": True}}


def state_of(**settings):
    """state.json of a run with the published settings but for these."""
    return {
        "step": 1000,
        "tokens": 131072000,
        "seconds": 4000.0,
        "settings": as_flat_dict(PretrainConfig()) | {"precision": "bf16"} | settings,
        "corpus": "19e94bb6d82ff316",
        "corpus_facts": {
            "documents": 1200, "tokens": 3400000, "vocab_size": 28996, "validation_fraction": 0.01,
        },
        "hardware": "8 x NVIDIA H100",
        "starting_losses": {"mlm_loss": 10.3, "sbo_loss": 10.4, "nsp_loss": 0.7},
        "latest_losses": {"mlm_loss": 1.5, "sbo_loss": float("nan"), "nsp_loss": 0.1},
        "versions": {"torch": "2.13.0", "python": "3.11"},
    }  # fmt: skip


def card(title="model", exported=BERT, model=None, state=None, tokenizer=TOKENIZER):
    return model_card.render(
        title, exported=exported, model=model or {}, state=state or {}, tokenizer=tokenizer
    )


def rows_of(text):
    """First cell -> the others, of all tables."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_what_a_run_tells():
    text = card(state=state_of(**{"batch.rows": 64, "masking.mask_ratio": 0.2, "steps": 2000}))
    rows = rows_of(text)
    assert rows["documents"] == ["1,200"]
    assert rows["word pieces"] == ["3,400,000"]
    assert rows["held out"] == ["0.01 of the documents"]
    assert rows["tokenizer"] == ["WordPiece, lower-cased"]
    assert rows["steps"] == ["2400000", "2000"]  # the later of two rows: the settings
    assert "| steps | 1,000 of 2,000 |" in text
    assert rows["tokens seen"] == ["131,072,000"]
    assert rows["started from"] == ["random weights"]
    assert (rows["precision"], rows["hardware"]) == (["bf16"], ["8 x NVIDIA H100"])
    assert rows["time"] == ["1h06m"]
    assert rows["MLM"] == ["10.300 (29,732.6)", "1.500 (4.5)"]
    assert rows["SBO"] == ["10.400 (32,859.6)", "unknown"]
    assert rows["NSP"] == ["0.700 (2.0)", "0.100 (1.1)"]
    assert (rows["batch.rows"], rows["masking.mask_ratio"]) == (["256", "64"], ["0.15", "0.2"])
    assert "span boundary objective" in text
    assert "12 layers, 768 wide, 12 heads" in text
    assert "/" not in text.split("## Training")[1].replace("https://", "")


def test_the_hub_reads_it():
    found = ModelCard(card(state=state_of())).data
    assert found.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["spanbert", "span-masking", "pre-training"],
    }
    encoder = {"model_type": "modernbert", "architectures": ["ModernBertModel"]}
    text = card(exported=encoder, state=state_of())
    assert ModelCard(text).data.pipeline_tag == "feature-extraction"
    assert "AutoModel.from_pretrained" in text
    assert "AutoModelForMaskedLM" not in text


def test_published_settings_without_a_held_out_part():
    state = state_of() | {"latest_losses": {}, "starting_losses": {}}
    text = card(state=state)
    assert "no loss was measured" in text
    assert text.split("differ from the published SpanBERT\n\n")[1].startswith("None.\n")


@pytest.mark.parametrize(
    ("licence", "name"),
    [
        ("CC BY-NC 4.0, non-commercial use only: these files have the layout", "cc-by-nc-4.0"),
        ("CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0"),
        ("Apache-2.0", "apache-2.0"),
        ("whatever: [our] own", "other"),
    ],
)
def test_a_licence_is_handed_on(licence, name):
    text = card(model={"weights_licence": licence}, state=state_of(init="spanbert/x"))
    assert ModelCard(text).data.license == name
    assert "carry a licence that goes with it" in text


@pytest.mark.parametrize(
    ("init", "shown"),
    [
        ("google-bert/bert-base-cased", "google-bert/bert-base-cased"),
        ("/home/anna/secret/bert-dir", "bert-dir"),
        ("../bert-dir/", "bert-dir"),
        ("work/models/bert-dir", "bert-dir"),
    ],
)
def test_where_it_started(init, shown):
    text = card(state=state_of(init=init))
    assert rows_of(text)["started from"] == [shown]
    assert "name none; look it up" in text


HOSTILE = "a`b|c<script>alert(1)</script>\n---\nlicense: mit\n# [x](javascript:y) $z$ *w* \x1b[31m"


def test_hostile_names_stay_text():
    state = state_of(init=HOSTILE, preset=HOSTILE) | {"hardware": HOSTILE, "corpus": HOSTILE}
    state["versions"] = {HOSTILE: HOSTILE}
    exported = BERT | {"model_type": HOSTILE}
    model = {"weights_licence": HOSTILE}
    tokenizer = {"model": {"type": HOSTILE}}
    text = card(HOSTILE, exported, model, state, tokenizer)
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["license_name"].startswith("a-b-c-script-alert-1-script-")
    assert ModelCard(text).data.license == "other"
    assert "<script>" not in body
    assert "\x1b" not in body
    assert "[x]" not in body
    assert "\nlicense: mit" not in text
    tame = card("t", BERT, {"weights_licence": "x"}, state_of(init="i", preset="p"), TOKENIZER)
    shape = [line.split(" ")[0] for line in body.splitlines()]
    assert shape == [line.split(" ")[0] for line in tame.split("---\n", 2)[2].splitlines()]


def test_a_model_that_nobody_trained_here(tmp_path):
    source, target = tmp_path / "source", tmp_path / "My model"
    source.mkdir()
    target.mkdir()
    (target / "config.json").write_text(json.dumps(BERT))
    (source / "state.json").write_text("[1]")
    path = model_card.write_card(source, target)
    loaded = ModelCard.load(path)
    assert loaded.text.strip().startswith("# My model")
    assert "Nothing is recorded about how these weights were trained" in loaded.text
    assert sorted(p.name for p in target.iterdir()) == ["README.md", "config.json"]
